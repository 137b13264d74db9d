//! `clip runtime-spec`: the config.json with which runc runs an image, from the image's own config.

mod defaults;

use std::{io::Write, os::unix::ffi::OsStrExt as _, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clip_format::storage_info::ImageConfig;
use serde_json::{Value, json};

use super::cat::small_file;
use crate::{
    accounts::{self, Account},
    args::{Net, RuntimeSpecArgs},
    clip_input::{self, CacheChoice},
    exit::Outcome,
    output::{print_json, stdout},
};

/// /etc/passwd and /etc/group at most. Source: a directory service dump of 100,000 users is some 10 MB.
pub const ACCOUNTS_BYTES_MAX: u64 = 64 << 20;
/// Source: what docker and podman set when the image has no PATH.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config.json, or the mount line, is on standard output.
pub fn run(args: &RuntimeSpecArgs) -> Result<Outcome> {
    if args.print_mount {
        writeln!(stdout(), "{}", mount_line(args)?)?;
        return Ok(Outcome::Good);
    }
    let spec = spec(args)?;
    print_json(&spec)?;
    match mount_line(args) {
        Ok(line) => writeln!(std::io::stderr(), "{line}")?,
        Err(error) => tracing::info!("no mount line: {error}"),
    }
    Ok(Outcome::Good)
}

fn spec(args: &RuntimeSpecArgs) -> Result<Value> {
    let opened = clip_input::open_image(&args.clip, &args.read, CacheChoice::SharedForLittle)?;
    let config = &opened.image.storage_info().config;
    let passwd = small_file(&opened, b"/etc/passwd", ACCOUNTS_BYTES_MAX)?.unwrap_or_default();
    let group = small_file(&opened, b"/etc/group", ACCOUNTS_BYTES_MAX)?.unwrap_or_default();
    let account = accounts::find(args.run_as.user.as_deref().unwrap_or(&config.user), &passwd, &group)?;
    to_spec(args, config, &account)
}

/// Pure: the spec of these settings.
fn to_spec(args: &RuntimeSpecArgs, config: &ImageConfig, account: &Account) -> Result<Value> {
    let command = command(&args.command, config, "clip runtime-spec FILE.clip -- /bin/sh")?;
    let capabilities = defaults::CAPABILITIES;
    // As docker: a process of another user than root starts without effective capabilities.
    let effective: &[&str] = if account.uid == 0 { &capabilities } else { &[] };
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": args.terminal,
            "user": { "uid": account.uid, "gid": account.gid, "additionalGids": account.additional_gids },
            "args": command,
            "env": environment(config, account, &args.run_as.env, args.terminal)?,
            "cwd": working_dir(args.run_as.workdir.as_deref(), config),
            "capabilities": { "bounding": capabilities, "effective": effective, "permitted": effective },
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "root": { "path": path_text(&args.rootfs)?, "readonly": args.read_only },
        "hostname": "clip",
        "mounts": defaults::mounts(args.net),
        "annotations": annotations(config),
        "linux": {
            "namespaces": namespaces(args.net),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": defaults::MASKED_PATHS,
            "readonlyPaths": defaults::READONLY_PATHS,
        },
    }))
}

/// The command that was typed, else the image's own; `example` says how to type one.
pub fn command(typed: &[String], config: &ImageConfig, example: &str) -> Result<Vec<String>> {
    if !typed.is_empty() {
        return Ok(typed.to_vec());
    }
    let command: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    ensure!(!command.is_empty(), "the image names no command; give one after --, such as: {example}");
    Ok(command)
}

/// The image's variables, then HOME and PATH where it has none, then `--env`.
pub fn environment(config: &ImageConfig, account: &Account, typed: &[String], terminal: bool) -> Result<Vec<String>> {
    fn name(variable: &str) -> &str {
        variable.split_once('=').map_or(variable, |(name, _)| name)
    }
    let mut variables = config.env.clone();
    let home = format!("HOME={}", account.home);
    let mut defaults = vec![PATH_DEFAULT.to_owned(), home];
    if terminal {
        defaults.push("TERM=xterm".to_owned());
    }
    for default in defaults {
        if !variables.iter().any(|variable| name(variable) == name(&default)) {
            variables.push(default);
        }
    }
    for typed in typed {
        ensure!(typed.contains('=') && !typed.starts_with('='), "--env {typed:?}: expected NAME=VALUE");
        variables.retain(|variable| name(variable) != name(typed));
        variables.push(typed.clone());
    }
    Ok(variables)
}

/// The directory that was typed, else the image's, from `/`.
pub fn working_dir(typed: Option<&str>, config: &ImageConfig) -> String {
    let dir = typed.unwrap_or(&config.working_dir);
    if dir.starts_with('/') { dir.to_owned() } else { format!("/{dir}") }
}

fn annotations(config: &ImageConfig) -> Value {
    let mut all = serde_json::Map::new();
    for (name, value) in &config.labels {
        all.insert(name.clone(), json!(value));
    }
    if !config.stop_signal.is_empty() {
        all.insert("org.opencontainers.image.stopSignal".to_owned(), json!(config.stop_signal));
    }
    Value::Object(all)
}

fn namespaces(net: Net) -> Value {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if net == Net::Private {
        kinds.push("network");
    }
    Value::Array(kinds.into_iter().map(|kind| json!({ "type": kind })).collect())
}

fn path_text(path: &std::path::Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: config.json can hold UTF-8 paths only", path.display()))
}

/// `mount -t overlay ...`: the image below, the bundle's `upper` on top, at the bundle's root directory. For a shell.
fn mount_line(args: &RuntimeSpecArgs) -> Result<String> {
    let lower = match &args.mountpoint {
        Some(dir) => dir.clone(),
        None => mounted_at(args)?,
    };
    let bundle = &args.bundle;
    let root = if args.rootfs.is_absolute() { args.rootfs.clone() } else { bundle.join(&args.rootfs) };
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        overlay_path(&lower)?,
        overlay_path(&bundle.join("upper"))?,
        overlay_path(&bundle.join("work"))?
    );
    Ok(format!("mount -t overlay overlay -o {} {}", shell_word(&options), shell_word(path_text(&root)?)))
}

/// Where this `.clip` is mounted now.
fn mounted_at(args: &RuntimeSpecArgs) -> Result<PathBuf> {
    let clip = std::fs::canonicalize(&args.clip)?;
    let mounts = clip_fuse::mount::mounts()?;
    let mut here = mounts.into_iter().filter(|mount| !mount.dead && mount.fsname.as_bytes() == clip.as_os_str().as_bytes());
    match here.next() {
        Some(mount) => Ok(mount.mountpoint),
        None => bail!("{} is not mounted; mount it first, or say where with --mountpoint DIR", args.clip.display()),
    }
}

/// A path as overlayfs reads it in its options: backslash, comma and colon escaped. Source: linux fs/overlayfs/params.c.
pub fn overlay_path(path: &std::path::Path) -> Result<String> {
    let mut text = String::new();
    for character in path_text(path)?.chars() {
        if matches!(character, '\\' | ',' | ':') {
            text.push('\\');
        }
        text.push(character);
    }
    Ok(text)
}

fn shell_word(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-=,:+@%".contains(character);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser as _;

    fn args(more: &[&str]) -> RuntimeSpecArgs {
        let argv = ["clip", "runtime-spec", "a.clip"].into_iter().chain(more.iter().copied());
        match crate::args::Cli::try_parse_from(argv).unwrap().command {
            crate::args::Command::RuntimeSpec(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn config() -> ImageConfig {
        ImageConfig {
            env: vec!["A=1".to_owned(), "HOME=/image".to_owned()],
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["one".to_owned()],
            working_dir: "srv".to_owned(),
            stop_signal: "SIGINT".to_owned(),
            ..ImageConfig::default()
        }
    }

    /// Entrypoint and command together, unless another command is typed; no command at all is an error that says what to do.
    #[test]
    fn commands() {
        let command =
            |typed: &[&str], config: &ImageConfig| command(&typed.iter().map(ToString::to_string).collect::<Vec<_>>(), config, "x");
        assert_eq!(command(&[], &config()).unwrap(), ["/entry", "one"]);
        assert_eq!(command(&["sh", "-c"], &config()).unwrap(), ["sh", "-c"]);
        assert!(command(&[], &ImageConfig::default()).is_err());
    }

    /// The image's own variables win over defaults, typed ones over both; PATH is always there.
    #[test]
    fn environments() {
        let account = Account { home: "/root".to_owned(), ..Account::default() };
        let found = environment(&config(), &account, &["A=2".to_owned()], false).unwrap();
        assert_eq!(found, ["HOME=/image", PATH_DEFAULT, "A=2"]);
        assert!(environment(&config(), &account, &["A".to_owned()], false).is_err());
    }

    /// The spec is one that the OCI runtime types read back, with and without the host's network.
    #[test]
    fn spec_is_valid() {
        for (typed, network) in [(&["--net", "host"][..], false), (&[][..], true)] {
            let account = Account { uid: 33, gid: 33, additional_gids: vec![4], home: "/".to_owned() };
            let spec = to_spec(&args(typed), &config(), &account).unwrap();
            let read: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(read.process().as_ref().unwrap().cwd(), &PathBuf::from("/srv"));
            let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
            assert_eq!(namespaces.iter().any(|kind| kind["type"] == "network"), network);
        }
    }

    /// Paths with commas, colons and blanks reach overlayfs through a shell as they are.
    #[test]
    fn mount_lines_are_quoted() {
        let line = mount_line(&args(&["--mountpoint", "/mnt/a,b:c", "--bundle", "/b d"])).unwrap();
        assert_eq!(line, r"mount -t overlay overlay -o 'lowerdir=/mnt/a\,b\:c,upperdir=/b d/upper,workdir=/b d/work' '/b d/rootfs'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
