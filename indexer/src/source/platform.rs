//! Which of an index's platforms runs where, as containerd chooses.

use clip_format::storage_info::Platform;

/// One spelling for one platform. Source: containerd/platforms database.go, normalizeArch.
pub(super) fn normalised(platform: Platform) -> Platform {
    let os = platform.os.to_lowercase();
    let variant = platform.variant.unwrap_or_default().to_lowercase();
    let (architecture, variant) = match (platform.architecture.to_lowercase().as_str(), variant.as_str()) {
        ("i386", _) => ("386".to_owned(), String::new()),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64".to_owned(), String::new()),
        ("x86_64" | "x86-64", _) => ("amd64".to_owned(), variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64".to_owned(), String::new()),
        ("aarch64", _) => ("arm64".to_owned(), variant),
        ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
        ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
        ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
        ("arm", "5" | "6" | "8") => ("arm".to_owned(), format!("v{variant}")),
        (other, _) => (other.to_owned(), variant),
    };
    Platform { os, architecture, variant: (!variant.is_empty()).then_some(variant) }
}

/// How well `candidate` suits `wanted` (0 is best), or `None` where it does not run. Source: containerd/platforms compare.go,
/// platformVector: older variants of a processor run on newer ones, 386 on amd64, 32-bit arm on arm64.
pub(super) fn rank(wanted: &Platform, candidate: &Platform) -> Option<usize> {
    let candidate = normalised(candidate.clone());
    if candidate.os != wanted.os {
        return None;
    }
    let runs = runnable(&wanted.architecture, wanted.variant.as_deref().unwrap_or_default());
    let variant = candidate.variant.unwrap_or_default();
    runs.iter().position(|(architecture, runs)| *architecture == candidate.architecture && *runs == variant)
}

/// Whether two platforms are one but for the variant, which many tools leave out of configs.
pub(super) fn same_processor(one: &Platform, other: &Platform) -> bool {
    let (one, other) = (normalised(one.clone()), normalised(other.clone()));
    (one.os, one.architecture) == (other.os, other.architecture)
}

/// Architecture and variant, the best first.
fn runnable(architecture: &str, variant: &str) -> Vec<(String, String)> {
    let pair = |architecture: &str, variant: &str| (architecture.to_owned(), variant.to_owned());
    let number = |variant: &str| variant.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok()).filter(|number| *number < 100);
    let mut list = vec![pair(architecture, variant)];
    match architecture {
        "amd64" => {
            list.extend((2..number(variant).unwrap_or(1)).rev().map(|older| pair("amd64", &format!("v{older}"))));
            if !variant.is_empty() {
                list.push(pair("amd64", ""));
            }
            list.push(pair("386", ""));
        }
        "arm" => list.extend((5..number(variant).unwrap_or(7)).rev().map(|older| pair("arm", &format!("v{older}")))),
        "arm64" => {
            if !variant.is_empty() {
                list.push(pair("arm64", ""));
            }
            list.extend((5..=8).rev().map(|older| pair("arm", &format!("v{older}"))));
        }
        _ => {}
    }
    list
}

/// `linux/arm64/v8`
pub(super) fn to_text(platform: &Platform) -> String {
    let Platform { os, architecture, variant } = platform;
    match variant {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    }
}
