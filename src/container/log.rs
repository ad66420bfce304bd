//! A container's log file, opened here and written by the monitor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::ContainerError;
use crate::cri;

/// Where the log of a container goes (CRI: `PodSandboxConfig.log_directory` and `ContainerConfig.log_path`); nowhere
/// unless both are given. A log path that leaves the log directory is refused.
pub fn path(pod: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> Result<Option<PathBuf>, ContainerError> {
    if pod.log_directory.is_empty() || container.log_path.is_empty() {
        return Ok(None);
    }
    let relative = Path::new(&container.log_path);
    if !relative
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        let what = format!(
            "log_path {:?} must stay below the pod's log_directory",
            container.log_path
        );
        return Err(ContainerError::Invalid { what });
    }
    Ok(Some(Path::new(&pod.log_directory).join(relative)))
}

/// Opens the log for appending, making it and its directory. A symlink in the file's place is not followed: what is
/// below the log directory may be written by others than root.
pub fn open(path: &Path) -> Result<OwnedFd, ContainerError> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(ContainerError::path("make log directory", dir))?;
    }
    File::options()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map(OwnedFd::from)
        .map_err(ContainerError::path("open log", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_path(directory: &str, path: &str) -> Result<Option<PathBuf>, ContainerError> {
        let pod = cri::PodSandboxConfig {
            log_directory: directory.into(),
            ..Default::default()
        };
        let container = cri::ContainerConfig {
            log_path: path.into(),
            ..Default::default()
        };
        super::path(&pod, &container)
    }

    #[test]
    fn a_log_is_below_the_pods_directory_or_nowhere() {
        assert_eq!(
            log_path("/var/log/pods/x", "c/0.log").unwrap(),
            Some("/var/log/pods/x/c/0.log".into())
        );
        assert_eq!(log_path("", "c/0.log").unwrap(), None);
        assert_eq!(log_path("/var/log/pods/x", "").unwrap(), None);
        for hostile in ["../y/0.log", "/etc/passwd", "a/../../b"] {
            assert!(log_path("/var/log/pods/x", hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn a_log_is_for_root_and_its_group_and_its_directory_is_made() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        open(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path) & !0o640, 0, "{:o}", mode(&path));
        assert_eq!(
            mode(path.parent().unwrap()) & 0o022,
            0,
            "others may not change what is in it"
        );
        // What is there is written on, not made anew.
        std::fs::write(&path, "before\n").unwrap();
        open(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\n");
    }

    #[test]
    fn a_symlink_in_the_logs_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("0.log"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(open(&link).is_err());
        assert!(!target.exists());
    }
}
