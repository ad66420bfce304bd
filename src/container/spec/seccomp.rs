//! Seccomp profiles to BPF.
