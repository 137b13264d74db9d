//! `clip doctor`: what of this machine works, and how to mend what does not.

mod machine;
mod registry;

use std::io::{IsTerminal as _, Write};

use anyhow::Result;
use serde::Serialize;

use crate::{
    args::DoctorArgs,
    exit::Outcome,
    output::{print_json, stdout},
    resolve,
};

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It works.
    Ok,
    /// Something is slower or not possible without it.
    Warn,
    /// Mounting or reading needs it.
    Fail,
}

/// One thing examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub health: Health,
    /// As found.
    pub detail: String,
    /// What to do; empty when it works.
    pub mend: String,
}

impl Finding {
    /// It works.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, health: Health::Ok, detail: detail.into(), mend: String::new() }
    }

    /// It works less well.
    pub fn warn(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, health: Health::Warn, detail: detail.into(), mend: mend.into() }
    }

    /// It does not work.
    pub fn fail(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, health: Health::Fail, detail: detail.into(), mend: mend.into() }
    }
}

/// Everything has been examined and reported.
pub fn run(args: &DoctorArgs) -> Result<Outcome> {
    let cache_dir = resolve::cache_dir(args.read.cache_dir.as_deref());
    let mut findings = machine::examine(cache_dir);
    if let Some(target) = &args.target {
        findings.extend(registry::examine(target, &args.read));
    }
    if args.json {
        print_json(&findings)?;
    } else {
        let mut out = stdout();
        for finding in &findings {
            write!(out, "{}", text(finding, std::io::stdout().is_terminal()))?;
        }
    }
    let failed = findings.iter().any(|finding| finding.health == Health::Fail);
    Ok(if failed { Outcome::Bad } else { Outcome::Good })
}

fn text(finding: &Finding, colour: bool) -> String {
    let (word, code) = match finding.health {
        Health::Ok => ("ok  ", "32"),
        Health::Warn => ("warn", "33"),
        Health::Fail => ("FAIL", "31"),
    };
    let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mend = if finding.mend.is_empty() { String::new() } else { format!("     -> {}\n", finding.mend) };
    format!("{word} {}: {}\n{mend}", finding.name, crate::display::escaped(finding.detail.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is broken comes with what to do.
    #[test]
    fn findings_say_how_to_mend() {
        let finding = Finding::fail("/dev/fuse", "no such file", "modprobe fuse");
        assert_eq!(text(&finding, false), "FAIL /dev/fuse: no such file\n     -> modprobe fuse\n");
        assert_eq!(text(&Finding::ok("x", "fine"), false), "ok   x: fine\n");
    }
}
