//! The only integers that cross an API of the project.
//!
//! Two offsets of one type in a row are how wrong bytes get served; each quantity is its own type here, all are 64-bit
//! or smaller counts of bytes or of things, and the arithmetic that could overflow on hostile input is checked.

use std::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            /// The bare number, for arithmetic at the edge of the system.
            #[must_use]
            pub const fn get(self) -> $int {
                self.0
            }

            /// The sum, or `None` past the type's range.
            #[must_use]
            pub fn checked_add(self, more: $int) -> Option<Self> {
                self.0.checked_add(more).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit! {
    /// A byte position in a layer stream (the decompressed tar bytes of one layer).
    StreamOffset(u64)
}
unit! {
    /// A byte position in a layer's blob as the registry serves it.
    CompressedOffset(u64)
}
unit! {
    /// A span's place in its layer's table, from 0.
    SpanIndex(u32)
}
unit! {
    /// A layer's place in the manifest, from 0 (the base). EROFS device ids are this plus 1.
    LayerIndex(u16)
}
unit! {
    /// An EROFS inode number: the inode's byte position in the index / 32. It is also `st_ino`.
    Nid(u64)
}
