//! Credentials and tokens: asked for when a request needs them, kept in memory only.
