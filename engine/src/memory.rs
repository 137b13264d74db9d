//! The allocator's part in what a process that has worked still holds.

/// Arenas of malloc. Source: malloc(3) allows eight a core, each with its own idle memory and 64 MiB of address space: 1,024 on 128 cores.
/// What is allocated here is small and seldom (spans have buffers of their own), so two do not contend.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;
/// Allocations from here on are maps that go back when freed; below it are the chunks of a response. Source: malloc(3): glibc begins with
/// 128 KiB, where a chunk of 256 KiB costs a map and 64 page faults, and raises that to whatever is freed, up to 32 MiB, after which it
/// keeps such blocks, and twice as much at the top of the heap: after a cold read of 200 MB, 100 MiB without use.
#[cfg(target_env = "gnu")]
const MAP_BYTES_MIN: libc::c_int = 1 << 20;
/// What may stay free at the top of the heap while there is work; what is left of it goes when there is none (`tend.rs`).
/// Source: judgement, not measured: the chunks of the default 16 connections, 256 KiB each, twice, so that a steady fetch does not give back
/// what it takes again at once.
#[cfg(target_env = "gnu")]
const TOP_BYTES_MAX: libc::c_int = 8 << 20;

/// malloc keeps little of what was freed, however many cores and threads there are. For the start of a program, before its threads:
/// a library has no business with the allocator of the program it is in. Nothing happens with another C library than glibc.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions; it refuses values that it does not like, which leaves the defaults.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TOP_BYTES_MAX);
    }
}

/// Whole pages that malloc holds without use go back to the system. Cost: a walk over its free lists, a millisecond or so.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
