//! Access profiles given on the command line, in a file of their own or within a `.clip`.

use std::{io::Read as _, path::Path};

use anyhow::{Context, Result};
use clip_engine::files::open_regular;
use clip_format::{
    clip_file::profile_of,
    limits::PROFILE_BYTES_MAX,
    profile::{Fit, MAGIC, Profile},
};

use crate::clip_input::read_section;

/// The profile in the file at `path`.
pub fn read_profile(path: &Path) -> Result<Profile> {
    let context = || format!("profile {}", path.display());
    let mut bytes = Vec::new();
    open_regular(path).with_context(context)?.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    Profile::from_bytes(&bytes).with_context(context)
}

/// Whether `bytes` are meant to be a profile.
pub fn is_profile(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The profile that is embedded in the `.clip` at `path`. Cost: two small reads, however large the image.
pub fn embedded_profile(path: &Path) -> Result<Option<Profile>> {
    let Some((header, stored)) = read_section(path, |header| header.profile)? else { return Ok(None) };
    profile_of(&header, &stored).map(Some).with_context(|| path.display().to_string())
}

/// How much of a profile is of use, for one line.
pub fn fit_text(profile: &Profile, fit: &Fit) -> String {
    format!("{} of the {} layers that it names as needed are in this image, {} runs in all", fit.found, fit.needed, profile.runs().len())
}
