//! Mounting as a user that may not mount: through the set-user-id program fusermount3.

use std::{
    ffi::OsString,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{kernel::system, options::MountOptions};
use crate::error::MountError;

const PROGRAM: &str = "fusermount3";
const MISSING: &str = "; install the package fuse3, which has it";

/// A mount by fusermount3, and the connection to serve it by.
///
/// # Errors
/// `System` with fusermount3's own words; `Option` for options that only root may give.
pub(super) fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if let Some(context) = options.contexts.first() {
        return Err(MountError::Option { option: context.clone(), reason: "only root may give a security context".into() });
    }
    let failed = |source: io::Error, hint| system(PROGRAM, mountpoint, source, hint);
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error, ""))?;
    // Its end of the socket is its stdin: the one descriptor that a child gets without leaking it to others.
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(option_list(options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::NotFound { MISSING } else { "" };
            failed(error, hint)
        })?;
    let received = receive(&ours);
    let output = child.wait_with_output().map_err(|error| failed(error, ""))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let hint = hint(&said);
            Err(failed(io::Error::other(if said.is_empty() { output.status.to_string() } else { said }), hint))
        }
        Err(error) => Err(failed(error, "")),
    }
}

/// Unmounts a mount of this user. `Err` holds fusermount3's own words.
pub(super) fn umount(mountpoint: &Path, lazily: bool) -> Result<(), (io::Error, &'static str)> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound { MISSING } else { "" };
        (error, hint)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("resource busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err((io::Error::new(kind, said), ""))
}

/// suid and dev are given for root's sake; fusermount3 takes them from nobody else.
fn option_list(options: &MountOptions) -> OsString {
    let fsname = if options.fsname.is_empty() { "clip" } else { &options.fsname };
    let mut list = format!("ro,subtype=clip,default_permissions,fsname={}", fsname.replace('\\', r"\\").replace(',', r"\,"));
    let root = rustix::process::getuid().is_root();
    for (wanted, option) in [
        (!options.exec, ",noexec"),
        (options.allow_other, ",allow_other"),
        (!options.suid, ",nosuid"),
        (!options.dev, ",nodev"),
        (options.suid && root, ",suid"),
        (options.dev && root, ",dev"),
    ] {
        if wanted {
            list.push_str(option);
        }
    }
    list.into()
}

/// The descriptor that fusermount3 sends, or `None` when it closed the socket without sending one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

fn hint(said: &str) -> &'static str {
    if said.contains("user_allow_other") {
        "; add a line user_allow_other to /etc/fuse.conf, or mount without allow_other"
    } else if said.contains("write access") {
        "; a user may mount only on a directory that is the user's own"
    } else if said.contains("/dev/fuse: Permission denied") {
        "; users need to read and write it (chmod 0666 /dev/fuse)"
    } else if said.contains("/dev/fuse") || said.contains("fuse device") {
        "; is FUSE there? (modprobe fuse; in a container: --device /dev/fuse)"
    } else if said.contains("not permitted") {
        "; is fusermount3 set-user-id root, and may this container mount? (--cap-add SYS_ADMIN)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commas of a file name are no separators to fusermount3.
    #[test]
    fn fsname_is_escaped() {
        let options = MountOptions { exec: false, allow_other: false, ..MountOptions::new(r"/a,b\c.clip".into()) };
        let list = option_list(&options);
        assert!(list.to_string_lossy().starts_with(r"ro,subtype=clip,default_permissions,fsname=/a\,b\\c.clip,noexec"), "{list:?}");
    }
}
