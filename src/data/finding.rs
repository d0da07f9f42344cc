//! What is odd about pictures: one list of codes for what opening a data set leaves out and what `grad data check` finds.
//!
//! ```text
//! code                  level     stable: scripts may match on it
//! what, path            text      what was found, and where
//! help                  text      what to do, the same for every finding of a code
//! ```

use std::path::{Path, PathBuf};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Training stops at it, or its results would be wrong.
    Error,
    /// Something is lost, or probably not what was meant.
    Warning,
    /// Good to know.
    Note,
}

impl Level {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        }
    }
}

/// Writes the enum, its order, and the four facts of each code from one table.
macro_rules! codes {
    ($($name:ident $code:literal $level:ident $title:literal, $help:literal;)*) => {
        /// What kind of finding it is. Ordered as reports list them: errors first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// Name for scripts; it never changes its meaning.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// How bad it is.
            pub fn level(self) -> Level {
                match self { $(Code::$name => Level::$level,)* }
            }

            /// What is said above all findings of this code.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }

            /// What to do about it.
            pub fn help(self) -> &'static str {
                match self { $(Code::$name => $help,)* }
            }
        }
    };
}

codes! {
    Unreadable "unreadable" Error "pictures that cannot be read",
        "copy or export them again, or remove them: training stops at the first";
    UnreadableMask "unreadable-mask" Error "masks that cannot be read",
        "copy or export them again, or remove them: evaluation stops at the first";
    DuplicateAcrossSplits "duplicate-across-splits" Error "the same pixels in two splits",
        "keep one of them: a model is not measured on what it was trained on";
    ContradictoryDuplicate "duplicate-good-and-defective" Error "the same pixels once as good and once as defective",
        "keep the one that is right";
    EmptyMask "empty-mask" Error "masks of defective pictures that mark nothing",
        "draw the defect, or remove the mask";
    MaskOnGood "mask-on-good" Error "masks that mark a defect in a good picture",
        "move the picture to its kind of defect, or remove the mask";
    MaskAspect "mask-aspect" Error "masks of another shape than their picture",
        "export the mask at the picture's size; a picture turned by its EXIF orientation needs a mask turned too";
    LeftOut "left-out" Warning "pictures that are not used",
        "move them to where they belong, or take them away";
    Unsupported "unsupported-format" Warning "pictures in a format that cannot be read",
        "convert them to PNG";
    EmptyFolder "empty-folder" Warning "folders without a picture",
        "put pictures there, or remove the folder";
    MissingMask "missing-mask" Warning "defective pictures without a mask",
        "they count in image metrics alone; draw masks to measure by pixels";
    OrphanMask "orphan-mask" Warning "masks without a picture",
        "call a mask PICTURE_mask.png or PICTURE.png, after the picture it belongs to";
    MaskSize "mask-size" Warning "masks of another size than their picture",
        "they are stretched to fit; export them at the picture's size if they were drawn on another one";
    MaskVanishes "mask-vanishes" Warning "marked defects that are gone at the network's size",
        "use a larger --image-size, or masks that are not thinner than a pixel there";
    Duplicate "duplicate" Warning "the same pixels twice in a split",
        "keep one of them: the other teaches and measures nothing new";
    Constant "constant" Warning "pictures of a single colour",
        "check the camera, or remove them";
    Dark "dark-16-bit" Warning "16-bit pictures that use the lowest values only",
        "the upper 8 bits are read and are nearly black: stretch the values to 0..65535";
    NoTraining "no-training" Warning "classes with nothing to train on",
        "put good pictures there, or leave the class out by --classes; measuring needs none";
    SingleTraining "single-training-picture" Warning "classes with a single picture to train on",
        "add good pictures: a single one is learnt by heart, so expect false alarms on all others";
    NoGoodTest "no-good-test" Warning "classes with defective test pictures and no good one",
        "add good pictures to test: without them no figure can be computed for the class";
    MixedModes "mixed-modes" Warning "classes with pictures of different kinds",
        "the odd ones look different to the network: export all pictures of a class alike";
    NoTest "no-test" Note "classes with no test pictures",
        "add good and defective ones to measure the model";
    NoDefectiveTest "no-defective-test" Note "classes with good test pictures and no defective one",
        "add defective pictures to measure more than false alarms";
    MaskValues "mask-values" Note "masks with values other than 0 and 255",
        "nothing, if they number kinds of defect: anything above 0 counts as defect";
    MixedSizes "mixed-sizes" Note "classes with pictures of different sizes",
        "nothing, if the parts look alike: every picture is stretched to the same square";
    Small "smaller-than-network" Note "pictures smaller than the network's input",
        "nothing, or a smaller --image-size: they are enlarged, which shows no more detail";
    OtherFiles "other-files" Note "files that are no pictures by their extension",
        "nothing, if they are not meant to be pictures";
}

/// Something odd, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind it is.
    pub code: Code,
    /// The file or folder; for what concerns a class, its folder or list.
    pub path: PathBuf,
    /// What was found there.
    pub what: String,
    /// Picture files that are not used because of it.
    pub left_out: usize,
}

impl Finding {
    /// A finding that leaves nothing out.
    pub fn new(code: Code, path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Finding { code, path: path.as_ref().into(), what: what.into(), left_out: 0 }
    }

    /// The same, leaving out `pictures` picture files.
    pub fn leaving_out(self, pictures: usize) -> Self {
        Finding { left_out: pictures, ..self }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Finding", 6)?;
        fields.serialize_field("code", self.code.name())?;
        fields.serialize_field("level", &self.code.level())?;
        fields.serialize_field("path", &self.path.display().to_string())?;
        fields.serialize_field("what", &self.what)?;
        fields.serialize_field("help", self.code.help())?;
        fields.serialize_field("left_out", &self.left_out)?;
        fields.end()
    }
}

/// Lines for a user who wants to go on: errors and warnings alone, at most `named` of each code.
pub fn brief(findings: &[Finding], named: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for &code in Code::ALL.iter().filter(|code| code.level() < Level::Note) {
        let all: Vec<&Finding> = findings.iter().filter(|f| f.code == code).collect();
        lines.extend(all.iter().take(named).map(ToString::to_string));
        if all.len() > named {
            lines.push(format!("{} more: {}; `grad data check` lists them", all.len() - named, code.title()));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_distinct_and_ordered_by_level() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.is_sorted_by_key(|code| code.level()));
        assert!(
            names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
    }

    #[test]
    fn many_findings_are_few_lines() {
        let mut findings: Vec<Finding> =
            (0..1000).map(|i| Finding::new(Code::MissingMask, format!("{i}.png"), "no mask")).collect();
        findings.push(Finding::new(Code::OtherFiles, "x", "3 files"));
        findings.push(Finding::new(Code::LeftOut, "y", "2 pictures"));
        let lines = brief(&findings, 2);
        assert_eq!(lines[..3], ["y: 2 pictures", "0.png: no mask", "1.png: no mask"]);
        assert!(lines.len() == 4 && lines[3].starts_with("998 more: "), "{lines:?}");
    }
}
