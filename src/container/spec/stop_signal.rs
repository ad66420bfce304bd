//! The signal that stops a container: of the request, else of the image, else TERM.

use oci_spec::image::ImageConfiguration;

use super::error::SpecError;
use crate::cri;

/// Real-time signals as programs know them: the C library keeps the first two of the kernel's for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names without `SIG`. The first name of a number is the one that is given back.
const NAMES: [(&str, i32); 35] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("UNUSED", libc::SIGSYS),
];

/// The signal's number.
pub fn resolve(container: &cri::ContainerConfig, image: &ImageConfiguration) -> Result<i32, SpecError> {
    let asked = cri::Signal::try_from(container.stop_signal).map_err(|_| SpecError::UnknownSignal {
        name: container.stop_signal.to_string(),
    })?;
    if let Some(number) = from_cri(asked) {
        return Ok(number);
    }
    match image
        .config()
        .as_ref()
        .and_then(|config| config.stop_signal().as_deref())
    {
        None | Some("") => Ok(libc::SIGTERM),
        Some(text) => parse(text).ok_or_else(|| SpecError::UnknownSignal {
            name: text.chars().take(64).collect(),
        }),
    }
}

/// The number of the CRI's signal; `None` for "the runtime's default".
fn from_cri(signal: cri::Signal) -> Option<i32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_SIG")?;
    let offset = |text: &str| text.parse::<i32>().ok();
    if let Some(rest) = name.strip_prefix("RTMINPLUS") {
        return Some(RTMIN + offset(rest)?);
    }
    if let Some(rest) = name.strip_prefix("RTMAXMINUS") {
        return Some(RTMAX - offset(rest)?);
    }
    by_name(name)
}

/// The CRI's word for a signal's number, for a container's status.
pub fn to_cri(number: i32) -> cri::Signal {
    let all = (1..=i32::MAX).map_while(|n| cri::Signal::try_from(n).ok());
    all.into_iter()
        .find(|signal| from_cri(*signal) == Some(number))
        .unwrap_or(cri::Signal::RuntimeDefault)
}

fn by_name(name: &str) -> Option<i32> {
    match name {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number),
    }
}

/// The forms of STOPSIGNAL: `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`, `RTMAX-2`, in any case.
fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if upper.bytes().all(|b| b.is_ascii_digit()) {
        return upper.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=RTMAX - RTMIN).contains(n));
    if let Some(rest) = name.strip_prefix("RTMIN+") {
        return Some(RTMIN + offset(rest)?);
    }
    if let Some(rest) = name.strip_prefix("RTMAX-") {
        return Some(RTMAX - offset(rest)?);
    }
    by_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    fn image(stop_signal: &str) -> ImageConfiguration {
        let config = ConfigBuilder::default().stop_signal(stop_signal).build().unwrap();
        ImageConfigurationBuilder::default().config(config).build().unwrap()
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_finds_back() {
        let mut numbers = std::collections::BTreeSet::new();
        for n in 1..=65 {
            let signal = cri::Signal::try_from(n).unwrap();
            let number = from_cri(signal).unwrap_or_else(|| panic!("{signal:?}"));
            assert_eq!(from_cri(to_cri(number)), Some(number));
            numbers.insert(number);
        }
        // All 31 standard and 31 real-time signals.
        assert_eq!(numbers.len(), 62);
        assert_eq!(from_cri(cri::Signal::RuntimeDefault), None);
        assert_eq!(from_cri(cri::Signal::Sigrtminplus15), Some(49));
        assert_eq!(from_cri(cri::Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(to_cri(15), cri::Signal::Sigterm);
        assert_eq!(to_cri(99), cri::Signal::RuntimeDefault);
    }

    #[test]
    fn forms_of_the_images_stop_signal() {
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGWINCH", 28),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-2", 62),
            ("rtmax", 64),
            ("64", 64),
        ] {
            assert_eq!(resolve(&Default::default(), &image(text)).unwrap(), number, "{text}");
        }
        for text in [
            "0",
            "65",
            "-1",
            "SIGFOO",
            "RTMIN+31",
            "RTMAX--1",
            "RTMIN+",
            "99999999999999999999",
        ] {
            assert!(resolve(&Default::default(), &image(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn the_request_comes_before_the_image() {
        let container = cri::ContainerConfig {
            stop_signal: cri::Signal::Sigusr1 as i32,
            ..Default::default()
        };
        assert_eq!(resolve(&container, &image("SIGQUIT")).unwrap(), libc::SIGUSR1);
        let unknown = cri::ContainerConfig {
            stop_signal: 99,
            ..Default::default()
        };
        assert!(resolve(&unknown, &image("SIGQUIT")).is_err());
    }
}
