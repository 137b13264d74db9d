//! The file system itself, over an index and an engine; knows no kernel and is tested without one.
