//! What the error stream says at the end of a command.

use super::protocol::Version;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Exited {
        code: i32,
    },
    /// It did not start, or its end is not known.
    Failed {
        message: String,
    },
}

impl Verdict {
    /// The words for the error stream; empty if a success is told by silence. From version 4 on a metav1.Status
    /// (k8s.io/apimachinery, remotecommand), before that plain text.
    pub fn words(&self, version: Version) -> String {
        if version >= Version::V4 {
            return self.status().to_string();
        }
        match self {
            Self::Exited { code: 0 } => String::new(),
            Self::Exited { code } => format!("command terminated with exit code {code}"),
            Self::Failed { message } => message.clone(),
        }
    }

    fn status(&self) -> serde_json::Value {
        match self {
            Self::Exited { code: 0 } => serde_json::json!({"metadata": {}, "status": "Success"}),
            Self::Exited { code } => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit code {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed { message } => serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_from_version_4_on_and_text_before() {
        let failed = Verdict::Exited { code: 3 };
        let status: serde_json::Value = serde_json::from_str(&failed.words(Version::V4)).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            serde_json::json!({"reason": "ExitCode", "message": "3"})
        );
        assert_eq!(failed.words(Version::V3), "command terminated with exit code 3");
    }

    #[test]
    fn a_success_is_told_from_version_4_on() {
        let fine = Verdict::Exited { code: 0 };
        assert!(fine.words(Version::V5).contains("Success"));
        assert_eq!(fine.words(Version::V1), "");
    }
}
