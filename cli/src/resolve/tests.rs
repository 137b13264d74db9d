#![allow(clippy::unwrap_used)]
use super::*;
use clap::Parser as _;

fn mount_args(more: &[&str]) -> MountArgs {
    let argv = ["clip", "mount", "a.clip", "/mnt"].into_iter().chain(more.iter().copied());
    match crate::args::Cli::try_parse_from(argv).unwrap().command {
        crate::args::Command::Mount(args) => args,
        other => panic!("{other:?}"),
    }
}

/// root's cache is the system's; a user's follows XDG, then HOME; without either there is none.
#[test]
fn cache_dir_defaults() {
    let home = Some(OsStr::new("/home/u"));
    assert_eq!(default_cache_dir(true, None, home), Some("/var/cache/clip".into()));
    assert_eq!(default_cache_dir(false, Some(OsStr::new("/x")), home), Some("/x/clip".into()));
    assert_eq!(default_cache_dir(false, None, home), Some("/home/u/.cache/clip".into()));
    assert_eq!(default_cache_dir(false, None, None), None);
}

/// An option inside -o means what the long option means, and what nobody knows is said to be unknown.
#[test]
fn options_inside_o() {
    let mut args = mount_args(&[]);
    for option in ["plain-http", "cache-dir=/c", "source=/s", "read-timeout=5s", "stop-timeout=0", "shards=3", "read-ahead=1MiB"] {
        assert_eq!(apply_ours(&mut args, option), Ok(true), "{option}");
    }
    assert!(args.read.client.plain_http);
    assert_eq!(args.read.cache_dir.as_deref(), Some(Path::new("/c")));
    assert_eq!(args.read.read_timeout, Some(Duration::from_secs(5)));
    assert_eq!(args.stop_timeout, Some(Duration::ZERO));
    assert_eq!(args.read.read_ahead, Some(1 << 20));
    assert_eq!(apply_ours(&mut args, "frobnicate"), Ok(false));
    assert!(apply_ours(&mut args, "cache-dir").is_err());
    assert!(apply_ours(&mut args, "shards=0").is_err());
}

/// Claim: an option inside -o touches no other one that was typed, nor what it has by itself; why it cannot be used is said in one line.
#[test]
fn an_option_inside_o_is_one_option() {
    let mut args = mount_args(&["--foreground", "--shards", "2", "--cache-dir", "/c", "--retries", "3", "--fill", "now"]);
    assert_eq!(apply_ours(&mut args, "allow-other"), Ok(true));
    assert_eq!(apply_ours(&mut args, "shards=4"), Ok(true));
    assert!(args.foreground && args.allow_other && !args.no_profile && !args.read.client.plain_http);
    assert_eq!((args.read.shards, args.read.client.deadlines.retries, args.fill), (Some(4), Some(3), Some(Fill::Now)));
    assert_eq!(
        (args.read.cache_dir.as_deref(), args.clip.to_str(), args.dir.to_str()),
        (Some(Path::new("/c")), Some("a.clip"), Some("/mnt"))
    );
    assert!(option_list::command().get_arguments().all(|argument| argument.get_env().is_none()));
    for (option, expected) in [
        ("shards=0", "expected a number from 1 to 1024, found \"0\""),
        ("cache-dir", "expected cache-dir=VALUE"),
        ("fill=", "expected fill=VALUE"),
        ("log-level=warning", "found \"warning\""),
        ("fill=later", "invalid value 'later' for '--fill <WHEN>'; [possible values: none, after, now]"),
        ("creds=u:p", "no place for a password"),
    ] {
        let found = apply_ours(&mut args, option).unwrap_err();
        assert!(found.contains(expected) && !found.contains('\n'), "{option}: {found}");
    }
    for unknown in ["", "frobnicate=1", "x-systemd.automount", "f", "-f", "=x", "clip=/x", "DIR"] {
        assert_eq!(apply_ours(&mut args, unknown), Ok(false), "{unknown}");
    }
}

/// Every long option of `clip mount` can be given inside -o.
#[test]
fn every_long_option_is_one_inside_o() {
    use clap::CommandFactory as _;
    let mut command = crate::args::Cli::command();
    command.build();
    let mount = command.find_subcommand("mount").unwrap();
    let names: Vec<_> = mount.get_arguments().filter_map(|argument| argument.get_long()).collect();
    assert!(names.contains(&"log-level") && names.contains(&"shards"), "{names:?}");
    for name in names.into_iter().filter(|name| !["help", "version"].contains(name)) {
        assert_ne!(apply_ours(&mut mount_args(&[]), name), Ok(false), "{name}");
    }
}

/// Limits on memory and connections reach the engine, typed as options or inside -o; what an owner with others is asked for is named.
#[test]
fn limits_reach_the_engine() {
    let typed = mount_args(&["--memory-max", "80MiB", "--connections", "6", "--connections-per-layer", "3"]);
    let mut inside = mount_args(&[]);
    for option in ["memory-max=80MiB", "connections=6", "connections-per-layer=3"] {
        assert_eq!(apply_ours(&mut inside, option), Ok(true), "{option}");
    }
    for args in [typed, inside] {
        let wish = EngineWish::from_args(&args.read).unwrap();
        let config = wish.to_config("/c".into());
        assert_eq!((config.bytes_in_flight_max, config.compressed_bytes_max), (64 << 20, 16 << 20));
        assert_eq!((config.connections_max, config.connections_per_layer_max), (6, 3));
        let found = wish.differences(&EngineWish::default().to_config("/c".into()));
        let names: Vec<_> = found.iter().map(|found| (found.option.as_str(), found.owner.as_str(), found.asked.as_str())).collect();
        let memory = ("--memory-max", "335544320", "83886080");
        assert_eq!(names, [memory, ("--connections", "16", "6"), ("--connections-per-layer", "4", "3")]);
        assert_eq!(wish.differences(&config), []);
    }
    assert!(apply_ours(&mut mount_args(&[]), "memory-max=1MiB").is_err());
}

/// A later mount that asks for nothing fits any owner; each wish that differs is named with both values.
#[test]
fn differences_name_option_and_both_values() {
    let owner = EngineWish { shards: Some(2), ..EngineWish::default() }.to_config("/c".into());
    assert_eq!(EngineWish::default().differences(&owner), []);
    let wish = EngineWish { shards: Some(3), plain_http: true, read_timeout: Some(Duration::from_secs(30)), ..EngineWish::default() };
    let found = wish.differences(&owner);
    let names: Vec<_> = found.iter().map(|found| (found.option.as_str(), found.owner.as_str(), found.asked.as_str())).collect();
    assert_eq!(names, [("--shards", "2", "3"), ("--plain-http", "no", "yes")]);
    assert_eq!(wish.differences(&wish.to_config("/c".into())), []);
}

/// Claim: links of `--stats` and `--record` are followed once, and what they lead to is what is written to: a device through its link stays
/// one.
#[test]
fn output_files_are_found_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    for (link, target) in [("a", "file"), ("b", "missing"), ("null", "/dev/null")] {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
    }
    let real = std::fs::canonicalize(dir.path()).unwrap();
    for (name, expected) in [("a", real.join("file")), ("b", at("missing")), ("null", "/dev/null".into())] {
        let found = output_file("--stats", &at(name)).unwrap();
        assert_eq!(found, expected);
        OutputPlace::at(&found).write(b"x", clip_indexer::Durability::Later).unwrap();
        assert!(at(name).is_symlink(), "{name}");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"x");
    assert_eq!(std::fs::read(at("missing")).unwrap(), b"x");
}
