//! The on-disk structures, proved at compile time.
