//! The containers' logs, as CRI has them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crisp::cri::ReopenContainerLogRequest;
use tonic::{Code, Status};

use crate::endpoint;
use crate::fixture::{Container, ask, eventually, is_code, world};

/// `2006-01-02T15:04:05.999999999Z07:00 stream P|F text`, checked byte for byte.
fn parse(line: &[u8]) -> (&str, char, &[u8]) {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next().unwrap_or_default()).expect("ASCII");
    let (time, stream, tag) = (text(), text(), text());
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    let (whole, zone) = shape.split_at(shape.rfind(['Z', '+', '-']).unwrap_or_default());
    let full = "9999-99-99T99:99:99.999999999";
    // crisp always writes all digits; nanoseconds as Go writes them, without zeros at the end, are the same format.
    let cut = endpoint::socket().is_some() && full.starts_with(whole) && whole.len() > 20;
    assert!(whole == full || cut, "{time}");
    assert!(zone == "Z" || zone == "+99:99" || zone == "-99:99", "{time}");
    assert!(stream == "stdout" || stream == "stderr", "{stream}");
    assert!(tag == "P" || tag == "F", "{tag}");
    (stream, tag.chars().next().unwrap(), fields.next().unwrap_or_default())
}

fn lines(container: &Container) -> Vec<(String, char, Vec<u8>)> {
    let text = fs::read(container.status().log_path).unwrap();
    assert!(text.is_empty() || text.ends_with(b"\n"), "the last line is cut");
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(parse);
    lines
        .map(|(stream, tag, text)| (stream.to_owned(), tag, text.to_owned()))
        .collect()
}

fn reopen(container: &Container) -> Result<(), Status> {
    ask(world().runtime().reopen_container_log(ReopenContainerLogRequest {
        container_id: container.id.clone(),
    }))
    .map(drop)
}

#[test]
fn each_line_with_its_time_stream_and_end() {
    let pod = world().pod("log-format");
    let script =
        "echo out; echo err >&2; echo; printf '  spaces  \\n'; printf 'bytes \\377\\376\\001\\n'; printf 'no end'";
    let c = pod.start("c", &["sh", "-c", script], |_| {});
    c.exited();
    let found = lines(&c);
    let of = |wanted: &str| {
        found
            .iter()
            .filter(|(stream, ..)| stream == wanted)
            .map(|(_, tag, text)| (*tag, text.as_slice()))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("stderr"), [('F', b"err".as_slice())]);
    let expected: [(char, &[u8]); 5] = [
        ('F', b"out"),
        ('F', b""),
        ('F', b"  spaces  "),
        ('F', b"bytes \xff\xfe\x01"),
        ('P', b"no end"),
    ];
    let stdout = of("stdout");
    assert_eq!(stdout[..4], expected[..4]);
    // An unfinished last line is all the same there; whether it counts as a whole one is not laid down.
    assert_eq!(stdout[4].1, expected[4].1);
    let path = PathBuf::from(c.status().log_path);
    assert_eq!(path, PathBuf::from(&pod.config.log_directory).join("c.log"));
    // It is the kubelet's to read, and stays when the container goes.
    c.remove().unwrap();
    assert!(path.exists());
}

#[test]
fn a_long_line_comes_in_parts_and_is_whole_together() {
    let pod = world().pod("log-parts");
    let c = pod.start(
        "c",
        &["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo short"],
        |_| {},
    );
    c.exited();
    let found = lines(&c);
    assert!(found.len() > 2);
    let (parts, short) = found.split_at(found.len() - 1);
    assert_eq!((short[0].1, short[0].2.as_slice()), ('F', b"short".as_slice()));
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|(_, tag, _)| *tag == 'P') && last.1 == 'F');
    let whole: Vec<u8> = parts.iter().flat_map(|(_, _, text)| text.clone()).collect();
    assert!(
        whole.len() == 100_000 && whole.iter().all(|byte| *byte == b'x'),
        "{}",
        whole.len()
    );
}

#[test]
fn a_terminals_lines_end_without_its_carriage_returns() {
    let pod = world().pod("log-tty");
    let c = pod.start("c", &["sh", "-c", "echo one; echo two >&2"], |config| config.tty = true);
    c.exited();
    let texts: Vec<_> = lines(&c)
        .into_iter()
        .map(|(stream, tag, text)| (stream, tag, String::from_utf8(text).unwrap()))
        .collect();
    let trimmed: Vec<_> = texts
        .iter()
        .map(|(s, t, text)| (s.as_str(), *t, text.trim_end_matches('\r')))
        .collect();
    assert_eq!(trimmed, [("stdout", 'F', "one"), ("stdout", 'F', "two")]);
}

#[test]
fn no_line_is_lost_or_doubled_when_the_log_is_reopened_under_load() {
    let pod = world().pod("log-reopen");
    let script = "for n in $(seq 0 29); do seq ${n}0001 $((n + 1))0000; sleep 0.01; done; exec sleep 1000";
    let c = pod.start("c", &["sh", "-c", script], |_| {});
    let path = PathBuf::from(c.status().log_path);
    let mut parts = Vec::new();
    for n in 0..5 {
        std::thread::sleep(Duration::from_millis(30));
        let rotated = path.with_extension(format!("{n}"));
        fs::rename(&path, &rotated).unwrap();
        reopen(&c).unwrap();
        assert!(path.exists(), "answered, and there is no new log");
        // Nothing is written to the old one from here on.
        parts.push(fs::read(&rotated).unwrap());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(fs::metadata(&rotated).unwrap().len() as usize, parts[n].len());
    }
    let last = |text: &[u8]| text.ends_with(b" 300000\n");
    let all: Vec<u8> = eventually("the last line", || {
        Some([parts.concat(), fs::read(&path).ok()?].concat()).filter(|all| last(all))
    });
    let numbers: Vec<u32> = all
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| std::str::from_utf8(parse(l).2).unwrap().parse().unwrap())
        .collect();
    let expected = (0..30).flat_map(|n: u32| format!("{n}0001").parse().unwrap()..=(n + 1) * 10_000);
    assert!(numbers.iter().copied().eq(expected), "{} lines", numbers.len());
}

#[test]
fn who_does_not_run_has_no_log_to_reopen() {
    let pod = world().pod("log-not");
    let c = pod.start("c", &["true"], |_| {});
    let path = PathBuf::from(c.exited().log_path);
    fs::remove_file(&path).unwrap();
    let refused = reopen(&c).unwrap_err();
    assert!(is_code(&refused, Code::FailedPrecondition), "{refused}");
    assert!(!path.exists(), "refused, and yet there is a file");
    let silent = pod.idle("silent", |config| config.log_path.clear());
    assert_eq!(silent.status().log_path, "");
    assert!(is_code(&reopen(&silent).unwrap_err(), Code::FailedPrecondition));
}

#[test]
fn a_log_stays_in_its_directory() {
    let pod = world().pod("log-path");
    let mut config = pod.config("c", &["true"]);
    for path in ["../outside.log", "/etc/absolute.log", "a/../../b.log"] {
        config.log_path = path.into();
        let refused = pod.try_create(config.clone()).err().expect(path);
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
    }
    config.log_path = "deep/er/0.log".into();
    let c = pod.try_create(config).unwrap();
    c.start().unwrap();
    c.exited();
    assert!(PathBuf::from(&pod.config.log_directory).join("deep/er/0.log").exists());
}
