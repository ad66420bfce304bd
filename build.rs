//! Generates the CRI's Rust types for the daemon, and links the pause program without a C runtime.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let daemon = std::env::var_os("CARGO_FEATURE_DAEMON").is_some();
    if !daemon {
        for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo:rustc-link-arg-bin=crisp-pause={arg}");
        }
    }
    if daemon {
        println!("cargo:rerun-if-changed=proto/runtime/v1/api.proto");
        let descriptors = protox::compile(["runtime/v1/api.proto"], ["proto"])?;
        tonic_prost_build::configure()
            .btree_map(".")
            .extern_path(
                ".runtime.v1.ListContainersResponse",
                "crate::cri::ListContainersResponse",
            )
            .extern_path(
                ".runtime.v1.ListPodSandboxResponse",
                "crate::cri::ListPodSandboxResponse",
            )
            .compile_fds(descriptors)?;
    }
    Ok(())
}
