//! Decompositions of adapted weights that the ranks divide.

use std::error::Error;

use burn::tensor::Device;
use soda_adapters::DivideDecompositions;
use soda_linalg::Svd;

use crate::divided::{Division, Recipients, Sent, Work};
use crate::output::tensor_file::{Tensors, tensor};

impl Sent for Svd {
    fn to_tensors(&self) -> Tensors {
        let Self { u, s, vt } = self;
        [("u", u.to_data()), ("s", s.to_data()), ("vt", vt.to_data())]
            .map(|(name, data)| (name.to_owned(), data))
            .into()
    }

    fn from_tensors(tensors: &Tensors, device: &Device) -> Option<Self> {
        Some(Self {
            u: tensor(tensors, "u", device)?,
            s: tensor(tensors, "s", device)?,
            vt: tensor(tensors, "vt", device)?,
        })
    }
}

impl DivideDecompositions for Division<'_> {
    fn owns(&self, item: usize) -> bool {
        Division::owns(*self, item)
    }

    fn exchange(
        &self,
        shapes: &[[usize; 2]],
        device: &Device,
        own: Vec<Svd>,
    ) -> Result<Vec<Svd>, Box<dyn Error + Send + Sync>> {
        let fits = |item: usize, found: &Svd, _: &[Svd]| {
            let [rows, cols] = shapes[item];
            let k = rows.min(cols);
            (found.u.dims(), found.s.dims(), found.vt.dims()) == ([rows, k], [k], [k, cols])
        };
        let work = Work {
            what: "decompositions",
            count: shapes.len(),
            recipients: Recipients::All,
            device,
            fits: &fits,
        };
        Ok(self.run(&work, |_| Ok(own))?)
    }
}
