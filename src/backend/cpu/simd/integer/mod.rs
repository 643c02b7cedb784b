//! Decodes over quantised keys and values in integers: codes are multiplied as they are stored, by queries and weights
//! that are rounded to integers.

pub(crate) mod pv;
pub(crate) mod qk;
pub(crate) mod query;
pub(crate) mod rounding;
pub(crate) mod vector;
pub(crate) mod weights;

use self::pv::PvArgs;
use self::qk::QkArgs;
use self::query::RoundedRows;
use self::vector::bias;
use self::weights::{ResultArgs, WeighArgs};
use crate::config::StorageType;

/// Products of queries and codes of keys.
///
/// # Safety
/// As [`super::Kernels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyProducts {
    /// Rounds a query: its dims, its row, where the rows go. False if it must stay f32.
    pub round_query: unsafe fn(&[f32], usize, RoundedRows) -> bool,
    pub qk: unsafe fn(&QkArgs),
}

/// Products of weights and codes of values.
///
/// # Safety
/// As [`super::Kernels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueProducts {
    /// Rounds the weights of a row and begins its sums. False if they must stay f32.
    pub weigh: unsafe fn(&WeighArgs) -> bool,
    pub pv: unsafe fn(&PvArgs),
    pub results: unsafe fn(&ResultArgs),
}

/// Compiles the kernels for one instruction set.
macro_rules! integer_kernels {
    ($name:ident, $vector:ty, $(#[$features:meta])?) => {
        pub(crate) mod $name {
            use super::*;

            macro_rules! typed {
                ($k:ident, $c:ty) => {
                    mod $k {
                        use super::*;

                        $(#[$features])?
                        unsafe fn round_query(q: &[f32], row: usize, to: RoundedRows) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `KeyProducts`.
                            unsafe { query::round_row::<$c>(q, bias::<$vector, $c>(), row, to) }
                        }

                        $(#[$features])?
                        unsafe fn qk(a: &QkArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `KeyProducts`.
                            unsafe { super::super::qk::qk::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn weigh(a: &WeighArgs) -> bool {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { weights::weigh::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn pv(a: &PvArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { super::super::pv::pv::<$vector, $c>(a) }
                        }

                        $(#[$features])?
                        unsafe fn results(a: &ResultArgs) {
                            // SAFETY: the instruction set and the arguments, by the contract of `ValueProducts`.
                            unsafe { weights::results::<$c>(a) }
                        }

                        pub const KEYS: KeyProducts = KeyProducts { round_query, qk };
                        pub const VALUES: ValueProducts = ValueProducts { weigh, pv, results };
                    }
                };
            }
            typed!(q8, crate::backend::cpu::simd::codes::CodesQ8);
            typed!(q4, crate::backend::cpu::simd::codes::CodesQ4);

            /// For keys of a type; `None` if it has no codes.
            pub(crate) fn keys(storage: StorageType) -> Option<KeyProducts> {
                match storage {
                    StorageType::Q8 => Some(q8::KEYS),
                    StorageType::Q4 => Some(q4::KEYS),
                    StorageType::F32 | StorageType::F16 | StorageType::Bf16 => None,
                }
            }

            /// For values of a type; `None` if it has no codes.
            pub(crate) fn values(storage: StorageType) -> Option<ValueProducts> {
                match storage {
                    StorageType::Q8 => Some(q8::VALUES),
                    StorageType::Q4 => Some(q4::VALUES),
                    StorageType::F32 | StorageType::F16 | StorageType::Bf16 => None,
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
integer_kernels!(
    avx512_vnni,
    crate::backend::cpu::simd::x86_64::vnni::Avx512Vnni,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
);
