//! Reading fixtures.

use std::collections::BTreeMap;

use grad::shape::Shape;
use grad::tensor::Tensor;
use safetensors::SafeTensors;
use serde_json::Value;

/// A fixture file in memory.
pub struct Fixture {
    pub tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, Value>,
}

impl Fixture {
    pub fn read(name: &str) -> Self {
        let path = grad::check::root().join(format!("fixtures/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let metadata = metadata.iter().map(|(k, v)| (k.clone(), serde_json::from_str(v).unwrap())).collect();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |t: safetensors::tensor::TensorView| {
            assert_eq!(t.dtype(), safetensors::Dtype::F32);
            let values: Vec<f32> = t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Tensor::from_slice(Shape::new(t.shape()), &values)
        };
        Fixture { tensors: file.tensors().into_iter().map(|(n, t)| (n, tensor(t))).collect(), metadata }
    }

    pub fn metadata(&self, key: &str) -> &Value {
        &self.metadata[key]
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }
}

/// Largest difference; NaN if there is one.
pub fn difference(a: impl IntoIterator<Item = f64>, b: &[f32]) -> f64 {
    let mut n = 0;
    let worst = a.into_iter().zip(b).map(|(a, &b)| (a - f64::from(b)).abs()).inspect(|_| n += 1);
    let worst = worst.fold(0.0, |w, d| if d <= w { w } else { d });
    assert_eq!(n, b.len(), "sizes differ");
    worst
}

pub fn wide(t: &[f32]) -> impl Iterator<Item = f64> + '_ {
    t.iter().map(|&v| v.into())
}

pub fn largest(t: &[f32]) -> f64 {
    wide(t).fold(0.0, |m, v| v.abs().max(m))
}
