//! Users and groups of an image: its own /etc/passwd and /etc/group, read as docker reads them.

use anyhow::{Result, bail};

/// Who a container's process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Groups that /etc/group adds, without `gid`, sorted.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` when no passwd line says otherwise.
    pub home: String,
}

/// The account that `spec` names: empty (root), `user`, `uid`, `user:group`, in any mix of names and numbers.
///
/// A number that no line has is taken as it is; a name that no line has is an error. With a group given, /etc/group adds none.
/// Source: moby/sys user.GetExecUser, which docker, podman and containerd follow.
pub fn find(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Account> {
    let (user, group_name) = spec.split_once(':').map_or((spec, ""), |(user, group)| (user, group));
    let user = if user.is_empty() { "0" } else { user };
    let mut account = Account { home: "/".to_owned(), ..Account::default() };
    let mut name = None;
    match passwd_line(user, passwd) {
        Some(line) => {
            (account.uid, account.gid) = (line.uid, line.gid);
            account.home = if line.home.is_empty() { "/".to_owned() } else { line.home.to_owned() };
            name = Some(line.name.to_owned());
        }
        None => match id(user) {
            Some(uid) => account.uid = uid,
            None => bail!("user {user:?}: no such name in the image's /etc/passwd; give a number or another user with --user"),
        },
    }
    if !group_name.is_empty() {
        account.gid = group_id(group_name, group)?;
    } else if let Some(name) = name {
        account.additional_gids = groups_of(&name, group);
        account.additional_gids.retain(|gid| *gid != account.gid);
    }
    Ok(account)
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The first line whose name, or uid where `user` is a number, fits.
fn passwd_line<'a>(user: &str, passwd: &'a [u8]) -> Option<PasswdLine<'a>> {
    let wanted = id(user);
    lines(passwd).find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, rest @ ..] = &fields[..] else { return None };
        let (uid, gid) = (id(uid)?, id(gid)?);
        let home = rest.get(1).copied().unwrap_or("");
        (*name == user || wanted == Some(uid)).then_some(PasswdLine { name, uid, gid, home })
    })
}

fn group_id(wanted: &str, group: &[u8]) -> Result<u32> {
    let number = id(wanted);
    let found = group_lines(group).find(|(name, gid, _)| *name == wanted || number == Some(*gid)).map(|(_, gid, _)| gid);
    match found.or(number) {
        Some(gid) => Ok(gid),
        None => bail!("group {wanted:?}: no such name in the image's /etc/group; give a number or another group with --user"),
    }
}

fn groups_of(user: &str, group: &[u8]) -> Vec<u32> {
    let mut gids: Vec<u32> =
        group_lines(group).filter(|(_, _, members)| members.split(',').any(|member| member == user)).map(|(_, gid, _)| gid).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

fn group_lines(group: &[u8]) -> impl Iterator<Item = (&str, u32, &str)> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, id(fields.next()?)?);
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).map(str::trim).filter(|line| !line.starts_with('#'))
}

/// A user or group id; the kernel keeps ids to 32 bits, and all ones means "no change".
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:44:Web:/var/www:/bin/false\nbroken\nold:x:x:1\n\xff:x:7:7::/:\nnumeric:x:70000:70001::\n";
    const GROUP: &[u8] = b"root:x:0:root\nadm:x:4:root,web\nwww:x:44:web\nmedia:x:90:web,web2\nweb2:x:91:\n";

    /// An empty user is root with root's groups and home.
    #[test]
    fn empty_is_root() {
        let account = find("", PASSWD, GROUP).unwrap();
        assert_eq!(account, Account { uid: 0, gid: 0, additional_gids: vec![4], home: "/root".to_owned() });
    }

    /// A name and its number are the same account, supplementary groups included.
    #[test]
    fn name_or_number() {
        let account = find("web", PASSWD, GROUP).unwrap();
        assert_eq!(account, Account { uid: 33, gid: 44, additional_gids: vec![4, 90], home: "/var/www".to_owned() });
        assert_eq!(find("33", PASSWD, GROUP).unwrap(), account);
        assert_eq!(find("numeric", PASSWD, GROUP).unwrap().home, "/");
    }

    /// A group given wins over the passwd line and over /etc/group.
    #[test]
    fn group_given() {
        let account = find("web:media", PASSWD, GROUP).unwrap();
        assert_eq!((account.uid, account.gid, account.additional_gids), (33, 90, vec![]));
        assert_eq!(find("web:12345", PASSWD, GROUP).unwrap().gid, 12345);
        assert_eq!(find(":media", PASSWD, GROUP).unwrap().gid, 90);
    }

    /// Numbers need no line, names do; all ones is no id.
    #[test]
    fn unknown() {
        assert_eq!(find("4242", b"", b"").unwrap(), Account { uid: 4242, gid: 0, additional_gids: vec![], home: "/".to_owned() });
        for bad in ["nobody", "web:nogroup", "4294967295", "-1", "old"] {
            assert!(find(bad, PASSWD, GROUP).is_err(), "{bad}");
        }
    }
}
