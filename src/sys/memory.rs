//! What the C library keeps of memory that was freed.

/// Arenas: threads come and go with what blocks, and each new arena would keep the peak of its own.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// What is at least so large, in bytes, is mapped by itself and goes back when it is freed. Set, it does not grow with
/// what was seen: the lists of a node with many pods would raise it to their own size.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// Has freed memory go back to the kernel, at the price of asking for it again: a daemon that was busy for a moment is small
/// again afterwards (mallopt(3)). To be called before there are threads.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, MAPPED),
    ] {
        // SAFETY: it changes the allocator's own settings, and there is no other thread yet. What it refuses stays as it is.
        unsafe { libc::mallopt(parameter, value) };
    }
}
