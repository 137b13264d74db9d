//! A password that is on no command line: from standard input, or asked for on the terminal.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, Read, Write as _},
    os::fd::AsFd as _,
};

use anyhow::{Context, Result, bail};
use clip_engine::registry::Secret;
use rustix::{
    process::{Signal, getpid, kill_process},
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};

use crate::exit::UsageError;

/// Bytes of a password at most. Source: access tokens of cloud registries, which are passwords too, are 2-10 KB.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// All of standard input, without the line's end, as docker login and podman login take it.
pub fn from_stdin() -> Result<Secret> {
    let mut text = String::new();
    std::io::stdin().take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text).context("--password-stdin: standard input")?;
    if text.len() as u64 > PASSWORD_BYTES_MAX {
        bail!("--password-stdin: expected at most {PASSWORD_BYTES_MAX} bytes on standard input");
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line)))
}

/// What the user types at `prompt`, unseen.
pub fn from_terminal(prompt: &str) -> Result<Secret> {
    let no_terminal = "--creds USER: there is no terminal to ask for the password on; give --password-stdin, or --authfile FILE";
    let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let mut terminal = opened.map_err(|_| UsageError(no_terminal.to_owned()))?;
    let typed = {
        let _unseen = Unseen::on(&terminal)?;
        // What is typed after the question is neither shown nor thrown away.
        write!(&terminal, "{prompt}")?;
        typed(BufReader::new(&terminal).bytes()).context("the terminal")?
    };
    writeln!(terminal)?;
    match typed {
        Typed::Line(line) => Ok(Secret::new(line)),
        Typed::Interrupted => {
            // As if the terminal had done it, now that it echoes again.
            let _ = kill_process(getpid(), Signal::INT);
            bail!("interrupted")
        }
    }
}

/// A terminal that shows nothing of what is typed and makes no signals of it, until this is dropped: a signal would leave it so.
struct Unseen<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Unseen<'a> {
    fn on(terminal: &'a File) -> Result<Self> {
        let before = tcgetattr(terminal.as_fd()).context("the terminal")?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(terminal.as_fd(), OptionalActions::Flush, &unseen).context("the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal.as_fd(), OptionalActions::Flush, &self.before);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Line(String),
    Interrupted,
}

/// The line that these keys make, with the keys that a terminal would understand: erase, erase all, interrupt, end.
fn typed(keys: impl Iterator<Item = std::io::Result<u8>>) -> std::io::Result<Typed> {
    let mut line = Vec::new();
    for key in keys.take(PASSWORD_BYTES_MAX as usize) {
        match key? {
            b'\n' | b'\r' => break,
            0x03 | 0x1c => return Ok(Typed::Interrupted),
            0x04 if line.is_empty() => return Ok(Typed::Interrupted),
            0x04 => break,
            0x08 | 0x7f => while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
            0x15 => line.clear(),
            byte => line.push(byte),
        }
    }
    let no_text = |_| std::io::Error::new(std::io::ErrorKind::InvalidData, "expected a password in UTF-8");
    String::from_utf8(line).map(Typed::Line).map_err(no_text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: keys make the line that a terminal would make of them, whole letters erased; an interrupt is one at any place.
    #[test]
    fn keys_make_a_line() {
        let typed = |keys: &[u8]| typed(keys.iter().map(|key| Ok(*key))).unwrap();
        let line = |text: &str| Typed::Line(text.to_owned());
        assert_eq!(typed(b"a b\nrest"), line("a b"));
        assert_eq!(typed("aé\x7f\x7f\x7fb\r".as_bytes()), line("b"));
        assert_eq!(typed(b"wrong\x15right\x04"), line("right"));
        assert_eq!(typed(b"\n"), line(""));
        for interrupted in [&b"abc\x03"[..], b"\x1c", b"\x04"] {
            assert_eq!(typed(interrupted), Typed::Interrupted);
        }
        assert!(super::typed([Ok(0xff), Ok(b'\n')].into_iter()).is_err());
    }
}
