//! Loops that are unrolled by hand, so that arrays of vectors stay in registers.

/// Repeats a statement for every index below a constant of at most eight, written out: arrays of vectors stay in registers only
/// where every index is known.
macro_rules! unrolled {
    ($n:expr, $i:ident, $body:expr) => {
        unrolled!(@ $n, $i, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $n:expr, $i:ident, $body:expr, $($k:literal)*) => {
        const { assert!($n <= 8) };
        $(if $k < $n {
            let $i: usize = $k;
            $body;
        })*
    };
}
pub(crate) use unrolled;

/// `$body` for every `$i` of `$from..$to`, by fours: `$v` is which of the four, for sums that do not wait for one another.
macro_rules! by_fours {
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
pub(crate) use by_fours;
