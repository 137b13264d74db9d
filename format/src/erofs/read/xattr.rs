//! Extended attributes, which stand right behind their inode.

use super::{Index, Inode};
use crate::{
    bounded::{field, record_at, slice_at},
    erofs::layout::{self, XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES, XattrEntry, XattrHeader},
    error::FormatError,
};

/// One attribute, its name in two parts.
pub(in crate::erofs) struct Xattr<'a> {
    pub index: u8,
    pub prefix: &'static [u8],
    pub rest: &'a [u8],
    pub value: &'a [u8],
}

/// The attributes of one inode; ends after the first error.
pub(in crate::erofs) struct Xattrs<'a> {
    body: Result<&'a [u8], FormatError>,
    /// Where the body stands in the image.
    base: u64,
    at: u64,
    done: bool,
}

impl<'a> Xattrs<'a> {
    fn advance(&mut self) -> Result<Option<Xattr<'a>>, FormatError> {
        let body = self.body.clone()?;
        if body.is_empty() {
            return Ok(None);
        }
        if self.at == 0 {
            let header: &XattrHeader = record_at(body, "xattr header", 0)?;
            if header.shared_count != 0 || header.reserved != [0; 7] {
                return Err(FormatError::Unknown {
                    what: "xattr h_shared_count",
                    expected: "no shared xattrs".to_owned(),
                    found: header.shared_count.to_string(),
                });
            }
            self.at = XATTR_HEADER_BYTES;
        }
        if self.at >= body.len() as u64 {
            return Ok(None);
        }
        let entry: &XattrEntry = record_at(body, "xattr entry", self.at)?;
        let (name_len, value_len) = (u64::from(entry.name_len), u64::from(entry.value_size.get()));
        let name_at = self.at + XATTR_ENTRY_BYTES;
        let rest = slice_at(body, "xattr name", name_at, name_len)?;
        let value = slice_at(body, "xattr value", name_at + name_len, value_len)?;
        let index = entry.name_index;
        let prefix =
            layout::xattr_prefix(index).filter(|_| layout::is_acl_index(index) == rest.is_empty() && !rest.contains(&0)).ok_or_else(
                || field("xattr e_name_index", self.base + self.at + 1, "1, 2, 3, 4 or 6 and a name without NUL that fits it", index),
            )?;
        self.at = (name_at + name_len + value_len).next_multiple_of(XATTR_ENTRY_BYTES);
        Ok(Some(Xattr { index, prefix, rest, value }))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<Xattr<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl Index {
    pub(in crate::erofs) fn xattr_parts<'a>(&'a self, inode: &Inode) -> Xattrs<'a> {
        let (base, len) = inode.xattr_body;
        Xattrs { body: slice_at(self.image(), "inode xattr body", base, len), base, at: 0, done: false }
    }

    /// Bytes of the xattr body of `inode`: what a full look at it costs.
    pub(in crate::erofs) fn xattr_body_bytes(inode: &Inode) -> u64 {
        inode.xattr_body.1
    }

    /// The extended attributes, as (full name such as `user.x`, value).
    pub fn xattrs<'a>(&'a self, inode: &Inode) -> impl Iterator<Item = Result<(Vec<u8>, &'a [u8]), FormatError>> + use<'a> {
        self.xattr_parts(inode).map(|xattr| xattr.map(|xattr| ([xattr.prefix, xattr.rest].concat(), xattr.value)))
    }

    /// One extended attribute's value, or `None`. Cost: no allocation.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn xattr<'a>(&'a self, inode: &Inode, name: &[u8]) -> Result<Option<&'a [u8]>, FormatError> {
        let Some((index, rest)) = layout::split_xattr_name(name) else { return Ok(None) };
        for xattr in self.xattr_parts(inode) {
            let xattr = xattr?;
            if xattr.index == index && xattr.rest == rest {
                return Ok(Some(xattr.value));
            }
        }
        Ok(None)
    }
}
