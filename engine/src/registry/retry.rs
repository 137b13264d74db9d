//! Which failures are tried again, how often and how long after.
