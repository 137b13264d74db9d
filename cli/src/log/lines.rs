//! A log that takes every line: one that cannot be written is lost, and that is all.

use std::io::{Error, ErrorKind, Write};

/// Lines for a writer that may fail. Losing some never hurts whoever logs; how many were lost is in the log once there is room again.
pub(super) struct Lines<W> {
    to: fn() -> W,
    /// Since the last line that was written.
    lost: u64,
    /// The last thing written is a part of a line.
    is_torn: bool,
    why: Option<Error>,
}

impl<W: Write> Lines<W> {
    pub(super) const fn new(to: fn() -> W) -> Self {
        Self { to, lost: 0, is_torn: false, why: None }
    }

    /// `line` is written, or counted.
    pub(super) fn put(&mut self, line: &[u8]) {
        if self.lost > 0 && !self.write(self.notice().as_bytes()) {
            self.lost += 1;
            return;
        }
        self.lost = 0;
        if !self.write(line) {
            self.lost = 1;
        }
    }

    fn notice(&self) -> String {
        let Self { lost, is_torn, why, .. } = self;
        let (newline, lines) = (if *is_torn { "\n" } else { "" }, if *lost == 1 { "line of the log was" } else { "lines of the log were" });
        let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        format!("{newline} WARN {lost} {lines} lost{why}\n")
    }

    /// False: not all of it was written.
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        let mut to = (self.to)();
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(0) => return false,
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.why = Some(error);
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static ROOM: RefCell<(usize, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }

    /// A file on a disk of so many bytes.
    struct Disk;

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            ROOM.with_borrow_mut(|(room, file)| {
                let taken = bytes.len().min(*room);
                if taken == 0 {
                    return Err(ErrorKind::StorageFull.into());
                }
                file.extend_from_slice(&bytes[..taken]);
                *room -= taken;
                Ok(taken)
            })
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Claim: lines that find no room are counted, and the log says how many once there is room; a line cut off ends first.
    #[test]
    fn lost_lines_are_counted() {
        let mut lines = Lines::new(|| Disk);
        ROOM.set((7, Vec::new()));
        lines.put(b"one\n");
        lines.put(b"cut off\n");
        lines.put(b"two\n");
        lines.put(b"three\n");
        ROOM.with_borrow_mut(|(room, _)| *room = 1000);
        lines.put(b"four\n");
        lines.put(b"five\n");
        let text = ROOM.with_borrow(|(_, file)| String::from_utf8(file.clone()).unwrap());
        assert_eq!(text, "one\ncut\n WARN 3 lines of the log were lost: no storage space\nfour\nfive\n");
    }
}
