//! Unrolled loops, so that arrays of vectors stay in registers.

/// A statement for every index below a constant of at most eight, unrolled: arrays of vectors stay in registers only
/// with constant indices.
macro_rules! unrolled {
    ($n:expr, $i:ident, $body:expr) => {
        unrolled!(@ $n, $i, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $n:expr, $i:ident, $body:expr, $($k:literal)*) => {
        const { assert!($n <= 8) };
        $(
            #[allow(unconditional_panic, reason = "an index beyond the length is in a branch that is never taken")]
            {
                // An inline constant: rustc compiles nothing of a branch that it rules out. Without `const` it would.
                if const { $k < $n } {
                    let $i: usize = $k;
                    $body;
                }
            }
        )*
    };
}
pub(crate) use unrolled;

/// `$body` for every `$i` of `$from..$to`, unrolled by four; `$v` is 0 to 3, for four independent accumulators.
macro_rules! unrolled_by_4 {
    ($i:ident in $from:expr, $to:expr, $v:ident, $body:expr) => {{
        let (mut at, to) = ($from, $to);
        while at + 4 <= to {
            unrolled!(4, $v, {
                let $i = at + $v;
                $body;
            });
            at += 4;
        }
        while at < to {
            let ($i, $v) = (at, 0);
            $body;
            at += 1;
        }
    }};
}
pub(crate) use unrolled_by_4;
