//! Operations between matrix products: RMS norm, SwiGLU, negative log-likelihood.

use anyhow::{Result, bail};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// With fewer rows, waking a thread costs more than it saves.
const MIN_ROWS: usize = 16;

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
///
/// # Errors
/// Those of `f`, and a tensor of another kind.
pub fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => f(&values[from..to]),
        _ => bail!("a tensor is not contiguous f32 on the CPU"),
    }
}

/// Row `i` of a matrix with rows of `width` values.
#[must_use]
pub fn row(values: &[f32], i: u32, width: usize) -> &[f32] {
    &values[i as usize * width..][..width]
}

/// The product of `values`, a matrix in row-major order, and `matrix`.
///
/// # Errors
/// Values that do not fill rows as long as `matrix` is high.
pub fn multiply(values: Vec<f32>, matrix: &Tensor) -> Result<Tensor> {
    let width = matrix.dim(0)?;
    let n = values.len() / width;
    Ok(Tensor::from_vec(values, (n, width), &Device::Cpu)?.matmul(matrix)?)
}

/// Adds a tensor with as many values to `x`.
///
/// # Errors
/// A tensor that is not contiguous f32 on the CPU.
pub fn add(x: &mut [f32], summand: &Tensor) -> Result<()> {
    with_values(summand, |summand| {
        x.iter_mut().zip(summand).for_each(|(x, summand)| *x += summand);
        Ok(())
    })
}

/// RMS norm: each row divided by its root mean square, times `weight`.
#[must_use]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut normed = vec![0.0; x.len()];
    let pairs = normed.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width));
    pairs.with_min_len(MIN_ROWS).for_each(|(normed, x)| {
        let mean = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
        let factor = (mean + eps).sqrt().recip();
        for ((normed, x), weight) in normed.iter_mut().zip(x).zip(weight) {
            *normed = x * factor * weight;
        }
    });
    normed
}

/// SwiGLU: silu(gate) * up. A row of `gate_up` holds `width` values of gate, then as many of up.
#[must_use]
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<f32> {
    let mut product = vec![0.0; gate_up.len() / 2];
    let pairs = product.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width));
    pairs.with_min_len(MIN_ROWS).for_each(|(product, gate_up)| {
        let (gate, up) = gate_up.split_at(width);
        for ((product, gate), up) in product.iter_mut().zip(gate).zip(up) {
            *product = gate / (1.0 + (-gate).exp()) * up;
        }
    });
    product
}

/// The negative log-likelihood of `token` under the softmax of `logits`, in nats.
#[must_use]
pub fn nll(logits: &[f32], token: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    (sum.ln() - f64::from(logits[token as usize] - max)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_matches_the_softmax() {
        assert!((nll(&[0.0, 3_f32.ln()], 0) - 4_f32.ln()).abs() < 1e-6);
        assert!((nll(&[1000.0, 1000.0], 1) - 2_f32.ln()).abs() < 1e-6);
        assert!(nll(&[f32::NAN, 0.0], 1).is_nan());
    }

    #[test]
    fn norm_and_swiglu() {
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let normed = rms_norm(&[3.0, 4.0, 0.0, 2.0], &[1.0, 2.0], 0.0);
        assert!(close(&normed, &[3.0 / 12.5_f32.sqrt(), 8.0 / 12.5_f32.sqrt(), 0.0, 2.0 * 2_f32.sqrt()]), "{normed:?}");
        let product = swiglu(&[0.0, 2.0, 5.0, 3.0], 2);
        assert!(close(&product, &[0.0, 2.0 / (1.0 + (-2_f32).exp()) * 3.0]), "{product:?}");
    }
}
