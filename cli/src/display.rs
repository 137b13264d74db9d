//! Names and attributes of files as text that cannot harm a terminal.

use std::fmt::Write as _;

use clip_format::erofs::{FileType, Inode};

/// `name` with control characters, backslashes, bytes that are no UTF-8 and characters that move or hide text escaped.
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            escape_char(&mut text, character);
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn escape_char(text: &mut String, character: char) {
    match character {
        '\n' => text.push_str("\\n"),
        '\t' => text.push_str("\\t"),
        '\r' => text.push_str("\\r"),
        '\\' => text.push_str("\\\\"),
        character if character.is_control() && character.is_ascii() => {
            let _ = write!(text, "\\x{:02x}", u32::from(character));
        }
        character if character.is_control() || moves_text(character) => {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(character));
        }
        character => text.push(character),
    }
}

/// Direction overrides, line separators and invisible marks: a name could look like another one.
fn moves_text(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `drwxr-xr-x`, as ls(1) writes it.
pub fn mode(inode: &Inode) -> String {
    let kind = match inode.file_type {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    };
    let bits = inode.mode;
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let three = bits >> shift;
        text.push(if three & 4 != 0 { 'r' } else { '-' });
        text.push(if three & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & special != 0, three & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// Size of a file or symlink target, or `major, minor` of a device.
pub fn size_or_device(inode: &Inode) -> String {
    match inode.file_type {
        FileType::CharDevice | FileType::BlockDevice => format!("{}, {}", inode.rdev_major, inode.rdev_minor),
        _ => inode.size.to_string(),
    }
}

/// Modification time in the local zone, to the second: `2024-02-29 23:59:59`.
pub fn mtime(inode: &Inode) -> String {
    let nanos = i32::try_from(inode.mtime_ns).unwrap_or(0);
    match jiff::Timestamp::new(inode.mtime_s, nanos) {
        Ok(time) => time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("@{}", inode.mtime_s),
    }
}

/// Rows of text as columns: numbers flush right where `right` says so.
pub fn columns(rows: &[Vec<String>], right: &[bool]) -> Vec<String> {
    let mut widths = vec![0; right.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter().map(|row| columns_row(row, &widths, right)).collect()
}

fn columns_row(row: &[String], widths: &[usize], right: &[bool]) -> String {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        let width = widths.get(column).copied().unwrap_or(0);
        let last = column + 1 == row.len();
        let _ = match (right.get(column).copied().unwrap_or(false), last) {
            (true, _) => write!(line, "{cell:>width$}"),
            (false, true) => write!(line, "{cell}"),
            (false, false) => write!(line, "{cell:<width$}"),
        };
        if !last {
            line.push(' ');
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Newlines, escape sequences, broken UTF-8 and direction overrides never reach a terminal.
    #[test]
    fn hostile_names_are_escaped() {
        assert_eq!(escaped(b"a\nb\x1b[31m"), "a\\nb\\x1b[31m");
        assert_eq!(escaped(b"\xff\\"), "\\xff\\\\");
        assert_eq!(escaped("\u{202e}x\u{85}".as_bytes()), "\\u{202e}x\\u{85}");
        assert_eq!(escaped("grüße 🎉".as_bytes()), "grüße 🎉");
    }

    proptest! {
        /// Whatever the bytes, no control character is left.
        #[test]
        fn escaped_has_no_controls(name: Vec<u8>) {
            prop_assert!(!escaped(&name).chars().any(char::is_control));
        }
    }

    /// Columns are as wide as their widest cell; the last left-aligned one has no trailing blanks.
    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "10".to_owned(), "x".to_owned()], vec!["bbb".to_owned(), "5".to_owned(), "yy".to_owned()]];
        assert_eq!(columns(&rows, &[false, true, false]), ["a   10 x", "bbb  5 yy"]);
    }
}
