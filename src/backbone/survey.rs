//! What a weight file holds, told instead of loaded: for looking at files, and for converting them.

use std::collections::HashSet;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::efficientnet::Backbone;
use super::names::{Names, Naming};
use super::plan::Network;
use super::source::Source;
use super::weights::{Asked, Weights};
use crate::error::{Error, Result};

/// A file held against a network.
pub struct Survey {
    /// The network it fits, or comes nearest to.
    pub network: Network,
    /// Whose names it has, and what stands before them.
    pub names: Names,
    /// Why it does not fit, tensor by tensor; empty if it does.
    pub faults: Vec<String>,
    /// Tensors that the network does not use, such as its later layers; BatchNorm's counters are not worth a mention.
    pub unused: Vec<String>,
    /// Identity of the weights, if they fit.
    pub digest: Option<blake3::Hash>,
    tensors: Vec<Asked>,
}

impl Survey {
    /// Holds an open file against every network.
    ///
    /// # Errors
    /// Why it can be none of them.
    pub fn of(path: &Path, source: &Source) -> Result<Self, String> {
        let names = Names::detect(source)?;
        let mut best: Option<Survey> = None;
        for network in Network::ALL {
            let plan = network.plan();
            let weights = Weights::new(path, plan.help, source, &names, true);
            // A survey refuses nothing.
            Backbone::read(plan, &weights).map_err(|e| e.to_string())?;
            let digest = weights.digest();
            let (faults, tensors) = weights.surveyed();
            // A whole one before all others, then the one of which most is there.
            let rank =
                |faults: &[String], tensors: &[Asked]| (faults.is_empty(), tensors.len().saturating_sub(faults.len()));
            if best.as_ref().is_none_or(|best| rank(&faults, &tensors) > rank(&best.faults, &best.tensors)) {
                let digest = faults.is_empty().then_some(digest);
                best = Some(Survey { network, names: names.clone(), faults, unused: vec![], digest, tensors });
            }
        }
        let mut best = best.expect("there are networks");
        let used: HashSet<&str> = best.tensors.iter().map(|asked| &*asked.key).collect();
        let unused = source
            .entries()
            .iter()
            .map(|entry| &entry.name)
            .filter(|name| !used.contains(&***name) && !name.ends_with("num_batches_tracked"));
        best.unused = unused.cloned().collect();
        Ok(best)
    }

    /// The bytes of a safetensors file with the tensors that the network uses, under our names, as f32.
    ///
    /// # Errors
    /// [`Error::Model`] naming what does not fit; `path` is that of the file surveyed.
    pub fn to_safetensors(&self, path: &Path) -> Result<Vec<u8>> {
        if let Some(fault) = self.faults.first() {
            return Err(Error::model(path, fault, self.network.plan().help));
        }
        let views = self.tensors.iter().map(|asked| {
            let view = TensorView::new(Dtype::F32, asked.shape.clone(), bytemuck::cast_slice(&asked.values));
            (&*asked.name, view.expect("sizes agree with the values"))
        });
        Ok(safetensors::serialize(views, None).expect("the tensors of a network have different names"))
    }

    /// Whose names they are, in words.
    pub fn describe_names(&self) -> String {
        let below =
            if self.names.prefix.is_empty() { String::new() } else { format!(", below \"{}\"", self.names.prefix) };
        format!("{}{below}", Naming::describe(self.names.naming))
    }
}
