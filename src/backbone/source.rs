//! Tensors by name, whatever kind of file they lie in: safetensors, or what PyTorch's `torch.save` wrote.
//!
//! A PyTorch file may hold its tensors directly or in one dictionary inside (`state_dict`, `model`, …); where several
//! dictionaries hold tensors, which one is meant cannot be told, and the file is refused.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::error::{Error, Result};
use crate::torch_file::{Item, TorchFile};

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name, as the file has it.
    pub name: String,
    /// Type of the values.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
}

/// An open file of tensors.
pub struct Source<'a> {
    file: File<'a>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    /// The dictionary that the tensors of a PyTorch file lie in.
    inside: Option<String>,
}

enum File<'a> {
    Safetensors(SafeTensors<'a>),
    Torch(TorchFile<'a>),
}

impl<'a> Source<'a> {
    /// Opens the bytes of a file; `path` and `help` are for messages.
    ///
    /// # Errors
    /// [`Error::Model`] when it is of neither kind, incomplete, or holds what is no tensor and no plain container.
    pub fn parse(path: &Path, help: &str, bytes: &'a [u8]) -> Result<Self> {
        if TorchFile::is(bytes) {
            return Self::torch(path, help, TorchFile::parse(path, bytes)?);
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| {
            use SafeTensorError as E;
            let what = if bytes.starts_with(&[0x80]) || bytes.get(257..262) == Some(b"ustar") {
                "is a pickle, but not one that torch.save writes".to_owned()
            } else if matches!(e, E::HeaderTooSmall | E::InvalidHeaderLength | E::MetadataIncompleteBuffer) {
                format!("is incomplete: its header does not fit its {} bytes", bytes.len())
            } else {
                format!("is neither a safetensors file nor a PyTorch file: {e}")
            };
            Error::model(path, what, help)
        })?;
        let entry = |(name, view): (String, safetensors::tensor::TensorView)| Entry {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
        };
        let mut entries: Vec<Entry> = file.tensors().into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self::new(File::Safetensors(file), entries, None))
    }

    fn torch(path: &Path, help: &str, file: TorchFile<'a>) -> Result<Self> {
        let root = file.root();
        let held = |item: Item| item.entries().any(|(_, value)| value.tensor().is_some());
        let mut inside = None;
        if !held(root) {
            let several = root.entries().filter(|(_, value)| held(*value)).filter_map(|(key, _)| key.text());
            match &several.collect::<Vec<_>>()[..] {
                [one] => inside = Some((*one).to_owned()),
                [] => return Err(Error::model(path, format!("holds no tensors, but {}", root.kind()), help)),
                several => {
                    let what = format!("holds several sets of tensors: {}", several.join(", "));
                    let help = format!(
                        "save the one you mean alone: torch.save(torch.load(FILE)[{:?}], \"weights.pth\")",
                        several[0]
                    );
                    return Err(Error::model(path, what, help));
                }
            }
        }
        let mut entries: Vec<Entry> = vec![];
        let mut seen = HashMap::new();
        for (key, value) in
            inside.as_deref().map_or(Some(root), |key| root.get(key)).into_iter().flat_map(Item::entries)
        {
            let (Some(name), Some(tensor)) = (key.text(), value.tensor()) else { continue };
            let entry = Entry { name: name.into(), dtype: tensor.dtype, shape: tensor.shape.clone() };
            // The last of two counts, as in Python.
            match seen.insert(name.to_owned(), entries.len()) {
                Some(before) => entries[before] = entry,
                None => entries.push(entry),
            }
        }
        Ok(Self::new(File::Torch(file), entries, inside))
    }

    fn new(file: File<'a>, entries: Vec<Entry>, inside: Option<String>) -> Self {
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Source { file, entries, by_name, inside }
    }

    /// What kind of file it is, in words.
    pub fn kind(&self) -> String {
        match (&self.file, &self.inside) {
            (File::Safetensors(_), _) => "safetensors".into(),
            (File::Torch(_), None) => "PyTorch".into(),
            (File::Torch(_), Some(inside)) => format!("PyTorch, tensors in \"{}\"", inside.escape_debug()),
        }
    }

    /// Every tensor: in the order of the file, or by name for safetensors.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    /// All values of the tensor called `name`, as f32.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, String> {
        let missing = || format!("lacks the tensor {name:?}");
        match &self.file {
            File::Safetensors(file) => {
                let tensor = file.tensor(name).map_err(|_| missing())?;
                // The tensors of a file start at any byte, so values are read one by one.
                let (pairs, quads) = (tensor.data().as_chunks::<2>().0, tensor.data().as_chunks::<4>().0);
                Ok(match tensor.dtype() {
                    Dtype::F32 => quads.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                    Dtype::F16 => pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
                    Dtype::BF16 => pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
                    other => return Err(format!("{name:?} holds {other:?}, expected F32, F16 or BF16")),
                })
            }
            File::Torch(file) => {
                let tensors = self.inside.as_deref().map_or(Some(file.root()), |key| file.root().get(key));
                let tensor = tensors.and_then(|tensors| tensors.get(name)).ok_or_else(missing)?;
                tensor.values().map_err(|fault| format!("{name:?} cannot be read: {fault}"))
            }
        }
    }
}
