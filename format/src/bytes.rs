//! Bytes that many readers share: a map of a file, or a vector in tests and tools.

use std::sync::Arc;

/// Bytes owned elsewhere, cheap to clone. The owner must never shrink or change them while a clone lives.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;
