//! Every `_max` of the format: what a reader accepts before it says the file is hostile or damaged.

/// Layers of one image. Source: docker refuses more than 127; room for what other builders make.
pub const LAYERS_MAX: usize = 1024;
/// URLs of one layer. Source: Windows images have one or two; room for mirrors.
pub const URLS_PER_LAYER_MAX: usize = 16;
/// Bytes of one URL. Source: signed addresses of blob storage have 600 to 1,600.
pub const URL_BYTES_MAX: usize = 2048;
/// Bytes of one name of a directory. Source: NAME_MAX, linux/limits.h.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symbolic link's target. Source: PATH_MAX less the NUL, linux/limits.h.
pub const LINK_TARGET_BYTES_MAX: usize = 4095;
/// Segments and holes of one sparse file, in chunks. Source: judgement, not measured: eight bytes each, 512 KiB of index for the worst file.
pub const CHUNKS_PER_FILE_MAX: u64 = 65_536;
/// Bytes of one regular file: one chunk of 2^(31+9) bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Bytes of one layer stream: 32-bit block addresses of 512 bytes.
pub const STREAM_BYTES_MAX: u64 = 1 << 41;
/// Bytes of the expanded storage info.
pub const STORAGE_INFO_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the expanded index (about 16 million files).
pub const INDEX_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the expanded checkpoints of all layers together.
pub const CHECKPOINTS_BYTES_MAX: u64 = 1 << 30;
/// Bytes of all windows together, compressed.
pub const WINDOWS_BYTES_MAX: u64 = 4 << 30;
/// Bytes of history that deflate can refer to. Source: RFC 1951 section 2.
pub const WINDOW_BYTES: usize = 32_768;
/// Smallest `--span-size`.
pub const SPAN_BYTES_MIN: u64 = 64 << 10;
/// Largest `--span-size`.
pub const SPAN_BYTES_MAX: u64 = 64 << 20;
/// So many spans in a row are of at least [`SPANS_IN_A_ROW_BYTES_MIN`] in all: what a read of so many bytes touches has a bound, wherever
/// in a layer it is.
pub const SPANS_IN_A_ROW: usize = 32;
/// Stream bytes of [`SPANS_IN_A_ROW`] spans. Source: of any three spans in a row that an indexer writes one is of `--span-size` or more
/// (a chained span that ends at a frame, and one that ends at the last frame before a large one, may be of any length; neither follows
/// itself), so that 32 are of ten times `SPAN_BYTES_MIN`, 640 KiB.
pub const SPANS_IN_A_ROW_BYTES_MIN: u64 = 512 << 10;
const _: () = assert!(SPANS_IN_A_ROW as u64 / 3 * SPAN_BYTES_MIN >= SPANS_IN_A_ROW_BYTES_MIN);
/// The `--span-size` that is used when none is given. Source: docs/decisions/002.md: sparse windows make
/// 1 MiB affordable.
pub const SPAN_BYTES_DEFAULT: u64 = 1 << 20;
/// The most history that a zstd frame of a layer may refer to, as a power of two: 128 MiB. Source: what the zstd command decodes without
/// being asked for more (ZSTD_WINDOWLOG_LIMIT_DEFAULT, zstd.h), so that no decoder takes more memory than that.
pub const FRAME_WINDOW_LOG_MAX: u8 = 27;
/// Bytes of one window's zstd frame. Source: ZSTD_COMPRESSBOUND(32768) = 32,944 in zstd.h, and room for a frame header.
pub const WINDOW_FRAME_BYTES_MAX: u32 = 33 << 10;
/// Runs of one access profile. Source: a run of every 1 MiB span of a 5.6 GB image is 5,600 of them; a million take 32 MB of memory.
pub const PROFILE_RUNS_MAX: u64 = 1 << 20;
/// Bytes of an access profile's expanded body: as many runs as may be, of 30 bytes each, and the most layers.
pub const PROFILE_BODY_BYTES_MAX: u64 = 32 << 20;
/// Bytes of an access profile as stored: the largest body that zstd cannot shorten, and the head.
pub const PROFILE_BYTES_MAX: u64 = PROFILE_BODY_BYTES_MAX + (PROFILE_BODY_BYTES_MAX >> 8) + 1024;
