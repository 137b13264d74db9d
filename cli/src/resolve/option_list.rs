//! One option of an `-o` list, as the long option that it is.

use clap::{
    ArgAction, Args as _, FromArgMatches as _,
    error::{ContextKind, ErrorKind},
};

use crate::{args::MountArgs, log::parse_level};

/// Takes `name` or `name=value` of an `-o` list as `--name` or `--name=value`. False: it is none of ours.
pub(super) fn apply_ours(args: &mut MountArgs, option: &str) -> Result<bool, String> {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    match (name, value) {
        ("", _) => return Ok(false),
        ("creds" | "password-stdin", _) => {
            return Err(
                "an option list is no place for a password: fstab and units can be read by everybody; give authfile=FILE".to_owned()
            );
        }
        (_, Some("")) => return Err(format!("expected {name}=VALUE")),
        // An option of every command, so none of the mount's own. A filter with commas is quoted, so that the list is not split there.
        ("log-level", text) => {
            let text = text.ok_or("expected log-level=VALUE")?;
            args.log_level = Some(parse_level(text.trim_matches('"'))?);
            return Ok(true);
        }
        _ => {}
    }
    let matches = match command().try_get_matches_from([format!("--{option}")]) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::UnknownArgument => return Ok(false),
        Err(error) => return Err(reason(&error, name)),
    };
    args.update_from_arg_matches(&matches).map_err(|error| reason(&error, name))?;
    Ok(true)
}

/// The options of `clip mount` for one of them alone: what is not typed is not touched, so that nothing has a default.
pub(super) fn command() -> clap::Command {
    let command = clap::Command::new("-o").no_binary_name(true).disable_help_flag(true);
    MountArgs::augment_args_for_update(command).mut_args(|arg| {
        let arg = arg.env(None);
        match arg.get_action() {
            // `false` would be the value of every flag that is not typed.
            ArgAction::SetTrue => {
                let arg = arg.action(ArgAction::Set).value_parser(clap::value_parser!(bool)).num_args(0..=1);
                arg.require_equals(true).default_missing_value("true")
            }
            _ => arg,
        }
    })
}

/// Why `name` cannot be used, without clap's frame.
fn reason(error: &clap::Error, name: &str) -> String {
    match std::error::Error::source(error) {
        Some(reason) => reason.to_string(),
        None if error.get(ContextKind::InvalidValue).is_some_and(|value| !value.to_string().is_empty()) => {
            let text = error.to_string();
            text.lines().take(2).map(|line| line.trim().trim_start_matches("error: ")).collect::<Vec<_>>().join("; ")
        }
        None => format!("expected {name}=VALUE"),
    }
}
