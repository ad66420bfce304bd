//! An exit record: how a container ended, for a daemon that was not there and perhaps when the monitor is not any more.

use super::protocol::Exit;

impl Exit {
    /// The text of an exit record: one line, for programs and people.
    pub fn to_record(self) -> String {
        format!(
            "exit 1 code={} signal={} finished_at_ns={} oom_killed={}\n",
            self.code, self.signal, self.finished_at_ns, self.oom_killed
        )
    }

    /// Reads an exit record; `None` if it is not one. Fields that a later version adds are skipped.
    pub fn from_record(text: &str) -> Option<Self> {
        let mut exit = Exit {
            code: 0,
            signal: 0,
            finished_at_ns: 0,
            oom_killed: false,
        };
        let fields = text.strip_suffix('\n')?.strip_prefix("exit 1 ")?;
        let mut seen = 0;
        for field in fields.split(' ') {
            let (name, value) = field.split_once('=')?;
            match name {
                "code" => exit.code = value.parse().ok()?,
                "signal" => exit.signal = value.parse().ok()?,
                "finished_at_ns" => exit.finished_at_ns = value.parse().ok()?,
                "oom_killed" => exit.oom_killed = value.parse().ok()?,
                _ => continue,
            }
            seen += 1;
        }
        (seen == 4).then_some(exit)
    }
}

#[cfg(test)]
mod tests {
    use crate::monitor::protocol::Exit;

    #[test]
    fn an_exit_record_reads_back_and_a_torn_one_does_not() {
        let exit = Exit {
            code: 137,
            signal: 9,
            finished_at_ns: 1_700_000_000_123_456_789,
            oom_killed: true,
        };
        let text = exit.to_record();
        assert_eq!(Exit::from_record(&text), Some(exit));
        for cut in 0..text.len() {
            assert_eq!(Exit::from_record(&text[..cut]), None, "{cut}");
        }
        assert_eq!(
            Exit::from_record("exit 1 code=1 signal=0 finished_at_ns=5 oom_killed=false core=true\n").map(|e| e.code),
            Some(1)
        );
    }
}
