//! What was rotten here and is whole again. Nothing is missing by it; but a disk that rots does so again, and somebody should hear of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Most files that are told of. A disk with more is known to be ill.
const KEPT_MAX: usize = 1000;

/// A file that was rotten, and is whole again or not needed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealedFile {
    /// The file.
    pub path: PathBuf,
    /// What was wrong with it.
    pub why: String,
    /// What has become of it.
    pub how: &'static str,
}

impl fmt::Display for HealedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was rotten ({}); {}", self.path.display(), self.why, self.how)
    }
}

/// Such files since the data directory was opened: of each, what was found last.
#[derive(Default)]
pub(crate) struct Healed(Mutex<BTreeMap<PathBuf, HealedFile>>);

impl Healed {
    /// Notes one, and tells of it.
    pub(crate) fn note(&self, path: &Path, why: &str, how: &'static str) {
        tracing::error!(path = %path.display(), why, how, "a file was rotten");
        let mut files = self.0.lock();
        if files.len() < KEPT_MAX || files.contains_key(path) {
            files.insert(path.to_owned(), HealedFile { path: path.to_owned(), why: why.to_owned(), how });
        }
    }

    /// All of them, by path.
    pub(crate) fn files(&self) -> Vec<HealedFile> {
        self.0.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_file_the_last_is_told_and_their_number_is_bounded() {
        let healed = Healed::default();
        for at in 0..KEPT_MAX + 5 {
            healed.note(Path::new(&format!("{at:06}")), "flipped", "made anew");
        }
        assert_eq!(healed.files().len(), KEPT_MAX);
        healed.note(Path::new("000000"), "cut", "made anew");
        assert_eq!(healed.files()[0].to_string(), "000000 was rotten (cut); made anew");
        assert_eq!(healed.files().len(), KEPT_MAX);
    }
}
