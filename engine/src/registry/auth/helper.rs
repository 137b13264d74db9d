//! Credential helpers: programs `docker-credential-NAME` that are asked for one registry's credentials.
//!
//! The `docker_credential` crate waits for a helper without a deadline, puts a helper's output (which may hold the secret) into its error,
//! and takes "not found" from a helper for a failure.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Deserialize;

use super::{login::Environment, secret::Credentials};

/// A helper that does not answer is killed. Source: interactive helpers wait for a person; nobody answers for a background mount.
const TIME_MAX: Duration = Duration::from_secs(30);
/// ... and after this part of what a request may go without progress. Source: so that the request fails with the helper's name before it is
/// given up as one to a dead registry, and has as much time left for the answer's use.
const PART: u32 = 2;
/// Source: identity tokens of cloud registries are 2-10 KB.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// What helpers print when they know nothing. Source: docker-credential-helpers, credentials/error.go.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: Option<String>,
    secret: Option<String>,
}

/// How helpers are run.
#[derive(Clone, Copy)]
pub(super) struct Helpers<'a> {
    /// Of whoever they are run for.
    pub environment: &'a Environment,
    /// For one of them, from start to end.
    pub time_max: Duration,
}

/// How long a helper may take for a request that is given up after `patience` without progress.
pub(super) fn time_max(patience: Duration) -> Duration {
    TIME_MAX.min(patience / PART)
}

/// Runs `docker-credential-NAME get` as whoever has the environment would. `None` when it knows no credentials for `key`.
///
/// # Errors
/// In words, with nothing of what the helper printed: that may be the secret.
pub(super) fn ask(helpers: &Helpers<'_>, name: &str, key: &str) -> Result<Option<Credentials>, String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return Err(format!("credential helper {name:?}: expected letters, digits, dots, underscores and dashes"));
    }
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg("get")
        .env_clear()
        .envs(helpers.environment.variables())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}; is it on the PATH of whoever ran clip?"))?;
    let output = talk(&mut child, key, helpers.time_max);
    let status = end(&mut child);
    let by_hand = || format!("; to see why: echo {key} | {program} get");
    let output = output.map_err(|why| format!("{program}: {why}{}", by_hand()))?;
    if !status.is_ok_and(|status| status.success()) {
        let knows_nothing = String::from_utf8_lossy(&output).to_ascii_lowercase().contains(NOT_FOUND);
        return if knows_nothing { Ok(None) } else { Err(format!("{program} failed{}", by_hand())) };
    }
    let answer: Answer =
        serde_json::from_slice(&output).map_err(|_| format!("{program}: expected JSON with Username and Secret{}", by_hand()))?;
    let secret = answer.secret.filter(|secret| !secret.is_empty());
    Ok(secret.map(|secret| Credentials::of_pair(&answer.username.unwrap_or_default(), &secret)))
}

/// The helper and whatever it has started in its group are gone, and it is reaped. How it ended, if it did by itself.
fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    // It is not reaped yet, so its number is still its group's and the signal meets nobody else.
    if let Some(group) = pid(child) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    child.wait()
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Writes the key, reads the answer, waits for the end without reaping: all within `timeout`.
fn talk(child: &mut Child, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
    let late = || format!("no answer within {} s", timeout.as_secs_f32());
    let deadline = Instant::now() + timeout;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { return Err("no pipes".to_owned()) };
    // A key is shorter than any pipe; a helper that does not read it may still answer.
    let _ = stdin.write_all(key.as_bytes());
    drop(stdin);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output);
        let _ = sender.send(read.map(|_| output));
    });
    let output = receiver.recv_timeout(timeout).map_err(|_| late())?.map_err(|error| error.to_string())?;
    if output.len() as u64 >= OUTPUT_BYTES_MAX {
        return Err(format!("an answer of {OUTPUT_BYTES_MAX} bytes or more"));
    }
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let Some(pid) = pid(child) else { return Err("no process".to_owned()) };
    loop {
        match waitid(WaitId::Pid(pid), options).map_err(|error| error.to_string())? {
            Some(_) => return Ok(output),
            None if Instant::now() >= deadline => return Err(late()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    fn of(environment: &Environment) -> Helpers<'_> {
        Helpers { environment, time_max: Duration::from_secs(10) }
    }

    /// An environment whose PATH finds `docker-credential-test`, a shell script.
    fn with_helper(dir: &Path, script: &str) -> Environment {
        let path = dir.join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Environment::from_pairs([("PATH", format!("{}:/usr/bin:/bin", dir.display())), ("WHO", "caller".to_owned())])
    }

    /// Claim: a helper is found on the caller's PATH and runs with the caller's environment and nothing else.
    #[test]
    fn a_helper_runs_with_the_callers_environment() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"read -r key || :; printf '{"Username":"%s","Secret":"%s %s"}' "$WHO" "$key" "${CARGO_MANIFEST_DIR-none}""#;
        let environment = with_helper(dir.path(), script);
        assert_eq!(ask(&of(&environment), "test", "h.x").unwrap(), Some(Credentials::of_pair("caller", "h.x none")));
        assert!(ask(&of(&environment), "clip-has-no-such", "h.x").unwrap_err().contains("docker-credential-clip-has-no-such"));
        assert!(ask(&of(&environment), "../evil", "h.x").is_err());
    }

    /// Claim: "not found" is no error; whatever else a failing or babbling helper prints is not shown.
    #[test]
    fn failures_do_not_repeat_what_was_printed() {
        for (script, found) in [
            ("echo 'credentials not found in native keychain'; exit 1", Ok(None)),
            (r#"echo '{"Username":"","Secret":""}'"#, Ok(None)),
            (r#"echo '{"Username":null,"Secret":null}'"#, Ok(None)),
            (r#"echo '{"Username":null,"Secret":"p"}'"#, Ok(Some(Credentials::of_pair("", "p")))),
            ("echo s3cret; exit 1", Err("failed")),
            ("echo s3cret", Err("expected JSON")),
            (r#"echo '{"Username":"u","Secret":["s3cret"]}'"#, Err("expected JSON")),
            ("head -c 2000000 /dev/zero | tr '\\0' s", Err("bytes or more")),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let answer = ask(&of(&with_helper(dir.path(), script)), "test", "h.x");
            match found {
                Ok(expected) => assert_eq!(answer.unwrap(), expected, "{script}"),
                Err(word) => {
                    let error = answer.unwrap_err();
                    assert!(error.contains(word) && error.contains("docker-credential-test get") && !error.contains("s3cret"), "{error}");
                }
            }
        }
    }

    /// Claim: a helper that does not answer ends with its deadline, and its children with it.
    #[test]
    fn a_helper_that_does_not_answer_is_killed_with_its_children() {
        for script in ["sleep 29.5 & echo $! >&2; wait", "exec >&-; sleep 29.5 & echo $! >&2; wait"] {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
            let mut child = command.spawn().unwrap();
            let begun = Instant::now();
            let error = talk(&mut child, "h.x", Duration::from_millis(300)).unwrap_err();
            assert!(error.contains("no answer within 0.3 s") && begun.elapsed() < Duration::from_secs(5), "{error}");
            end(&mut child).unwrap();
            let mut grandchild = String::new();
            child.stderr.take().unwrap().read_to_string(&mut grandchild).unwrap();
            let status = std::path::PathBuf::from(format!("/proc/{}/cmdline", grandchild.trim()));
            let by = Instant::now() + Duration::from_secs(5);
            while std::fs::read(&status).is_ok_and(|line| line.starts_with(b"sleep\x0029.5")) {
                assert!(Instant::now() < by, "process {grandchild} lives on");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
