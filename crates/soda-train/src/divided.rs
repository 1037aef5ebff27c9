//! Work that the ranks of a training divide: item `i` is done by rank `i mod world`.
//!
//! The items of a piece of work, such as parts of the samples or pictures to encode, follow from settings and
//! data, never from the number of processes. What a process computes for an item has the same bits whichever
//! process it is, so that a run has the same bits with any number of them.
//!
//! Results travel as named tensors with the name of their item and a digest ([`tensor_file`]). Bytes that are
//! damaged, of another item or of another form end the training with the name of their rank.
//!
//! [`tensor_file`]: crate::output::tensor_file

use burn::tensor::Device;
use soda_distributed::{Alone, Reduce};

use crate::error::TrainError;
use crate::output::tensor_file::{Tensors, from_bytes, to_bytes};

/// The most bytes of one result, such as a picture or the gradient of a calibration.
const LONGEST_RESULT: usize = 4 << 30;

/// The ranks that divide work.
#[derive(Clone, Copy)]
pub(crate) struct Division<'a> {
    reduce: &'a dyn Reduce,
}

/// A result that one rank can send to another.
pub(crate) trait Sent: Sized {
    /// The values as named tensors.
    fn to_tensors(&self) -> Tensors;

    /// The values of [`Sent::to_tensors`], on `device`. `None` if they are something else.
    fn from_tensors(tensors: &Tensors, device: &Device) -> Option<Self>;
}

/// Who needs the results of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipients {
    /// Rank 0, which writes them.
    Rank0,
    /// Every rank.
    All,
}

/// A piece of work of several items.
pub(crate) struct Work<'a, T> {
    /// What the items are, in the plural, for the sentence about a damaged one.
    pub(crate) what: &'a str,
    /// The number of items.
    pub(crate) count: usize,
    /// Who needs all results.
    pub(crate) recipients: Recipients,
    /// The device of results that another rank has sent.
    pub(crate) device: &'a Device,
    /// Whether another rank's result of this item has the right form, given the results of all items before
    /// it.
    pub(crate) fits: &'a dyn Fn(usize, &T, &[T]) -> bool,
}

impl Default for Division<'_> {
    fn default() -> Self {
        Self { reduce: &Alone }
    }
}

impl<'a> Division<'a> {
    /// Work that the ranks of `reduce` divide.
    pub(crate) fn new(reduce: &'a dyn Reduce) -> Self {
        Self { reduce }
    }

    /// Whether this rank is the one that writes.
    pub(crate) fn is_first(self) -> bool {
        self.reduce.rank() == 0
    }

    /// The numbers of this rank's items of `count`, in ascending order.
    pub(crate) fn own(self, count: usize) -> Vec<usize> {
        (self.reduce.rank()..count).step_by(self.reduce.world()).collect()
    }

    /// The bytes of rank 0, at most `limit`, on every rank.
    pub(crate) fn of_rank_0(self, bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, TrainError> {
        Ok(self.reduce.broadcast(bytes, limit)?)
    }

    /// What rank 0 has found, if it has, on every rank.
    ///
    /// # Errors
    /// A rank that has gone, or that sent something else.
    pub(crate) fn found_by_rank_0<T>(
        self,
        what: &str,
        own: Option<T>,
        pack: impl Fn(&T) -> Tensors,
        unpack: impl Fn(&Tensors) -> Option<T>,
    ) -> Result<Option<T>, TrainError> {
        if self.reduce.world() == 1 {
            return Ok(own);
        }
        let bytes = own.as_ref().map(|own| to_bytes(what.to_owned(), &pack(own))).transpose();
        let bytes = bytes.map_err(|_| self.reduce.refuse(0, what))?.unwrap_or_default();
        let bytes = self.reduce.broadcast(bytes, LONGEST_RESULT)?;
        if self.is_first() || bytes.is_empty() {
            return Ok(own);
        }
        let found = from_bytes(&bytes).filter(|(name, _)| name == what);
        match found.and_then(|(_, tensors)| unpack(&tensors)) {
            Some(found) => Ok(Some(found)),
            None => Err(self.reduce.refuse(0, what).into()),
        }
    }

    /// The number of ranks.
    pub(crate) fn world(self) -> usize {
        self.reduce.world()
    }

    /// The numbers of the items of other ranks, on rank 0, which stores what they have made; none on the
    /// others.
    pub(crate) fn of_others(self, count: usize) -> impl Iterator<Item = usize> {
        let world = self.reduce.world();
        let here = if self.is_first() { count } else { 0 };
        (0..here).filter(move |item| item % world > 0)
    }

    /// Whether an item is this rank's.
    pub(crate) fn owns(self, item: usize) -> bool {
        item % self.reduce.world() == self.reduce.rank()
    }

    /// Does this rank's items with `run`, which gets their numbers and returns one result for each.
    ///
    /// Returns the results of all items in order to the recipients, and to other ranks those of their own
    /// items. With one process `run` does all items, and nothing is copied.
    ///
    /// # Errors
    /// The error of `run`; a rank that has gone, or that sent something else.
    pub(crate) fn run<T: Sent>(
        self,
        work: &Work<'_, T>,
        run: impl FnOnce(&[usize]) -> Result<Vec<T>, TrainError>,
    ) -> Result<Vec<T>, TrainError> {
        let done = run(&self.own(work.count))?;
        if self.reduce.world() == 1 {
            return Ok(done);
        }
        self.exchange(work, done)
    }

    /// Does this rank's items one after the other, and says after each that this rank works on. As
    /// [`Division::run`] otherwise.
    pub(crate) fn each<T: Sent>(
        self,
        work: &Work<'_, T>,
        mut run: impl FnMut(usize) -> Result<T, TrainError>,
    ) -> Result<Vec<T>, TrainError> {
        self.run(work, |own| {
            let one = |item: &usize| {
                let result = run(*item);
                self.reduce.alive();
                result
            };
            own.iter().map(one).collect()
        })
    }

    /// Sends the results `own` of this rank to the recipients, one item of each rank at a time: this bounds
    /// what is in memory beside them, and no rank waits for long.
    fn exchange<T: Sent>(self, work: &Work<'_, T>, own: Vec<T>) -> Result<Vec<T>, TrainError> {
        let (rank, world) = (self.reduce.rank(), self.reduce.world());
        let mut own = own.into_iter();
        let mut results = Vec::with_capacity(work.count);
        for first in (0..work.count).step_by(world) {
            let items = first..work.count.min(first + world);
            let mut mine = if items.contains(&(first + rank)) { own.next() } else { None };
            let bytes = match &mine {
                Some(mine) if rank > 0 || work.recipients == Recipients::All => {
                    self.pack(work, first + rank, mine)?
                }
                _ => Vec::new(),
            };
            let mut gathered = self.reduce.gather(bytes, LONGEST_RESULT)?.into_iter();
            for (owner, item) in items.enumerate() {
                let mut bytes = gathered.next().unwrap_or_default();
                let mut found = mine.take_if(|_| owner == rank);
                if rank == 0 && owner > 0 {
                    // Before it is passed on, so that the sentence names the rank that made it.
                    found = Some(self.unpack(work, item, &bytes, &results, owner)?);
                }
                if work.recipients == Recipients::All {
                    bytes = self.reduce.broadcast(bytes, LONGEST_RESULT)?;
                    if found.is_none() {
                        found = Some(self.unpack(work, item, &bytes, &results, 0)?);
                    }
                }
                results.extend(found);
            }
        }
        Ok(results)
    }

    fn pack<T: Sent>(
        self,
        work: &Work<'_, T>,
        item: usize,
        own: &T,
    ) -> Result<Vec<u8>, TrainError> {
        let bytes = to_bytes(name(work, item), &own.to_tensors());
        bytes.map_err(|_| self.reduce.refuse(self.reduce.rank(), work.what).into())
    }

    /// The result of an item that `sender` has sent.
    fn unpack<T: Sent>(
        self,
        work: &Work<'_, T>,
        item: usize,
        bytes: &[u8],
        before: &[T],
        sender: usize,
    ) -> Result<T, TrainError> {
        let sent = from_bytes(bytes).filter(|(found, _)| *found == name(work, item));
        let result = sent.and_then(|(_, tensors)| T::from_tensors(&tensors, work.device));
        let result = result.filter(|result| (work.fits)(item, result, before));
        result.ok_or_else(|| self.reduce.refuse(sender, work.what).into())
    }
}

/// The name of an item on its way.
fn name<T>(work: &Work<'_, T>, item: usize) -> String {
    format!("{} {item} of {}", work.what, work.count)
}

/// A number, such as a loss.
impl Sent for f32 {
    fn to_tensors(&self) -> Tensors {
        Tensors::from([("value".to_owned(), [*self].into())])
    }

    fn from_tensors(tensors: &Tensors, _: &Device) -> Option<Self> {
        let data = tensors.get("value")?;
        let values = data.as_slice::<Self>().ok()?;
        if let [value] = values { Some(*value) } else { None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::net::TcpListener;
    use std::time::Duration;

    use burn::tensor::TensorData;
    use soda_distributed::{DistributedError, Item, Launch, Tcp, connect};

    use super::*;

    /// Some numbers, which a process alone does not pack.
    #[derive(Clone, Debug, PartialEq)]
    struct Numbers(Vec<f32>);

    impl Sent for Numbers {
        fn to_tensors(&self) -> Tensors {
            assert!(!self.0.is_empty(), "packed");
            let data = TensorData::new(self.0.clone(), [self.0.len()]);
            Tensors::from([("numbers".to_owned(), data)])
        }

        fn from_tensors(tensors: &Tensors, _: &Device) -> Option<Self> {
            Some(Self(tensors.get("numbers")?.as_slice().ok()?.to_vec()))
        }
    }

    /// Runs `work` on each of `world` ranks over loopback connections.
    fn ranks<T: Send>(world: usize, work: impl Fn(&Tcp) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        std::thread::scope(|scope| {
            let start = |rank| {
                let work = &work;
                scope.spawn(move || {
                    let launch = Launch::local(rank, world, port, "token");
                    work(&connect(&launch, Duration::from_secs(20), &mut |_| ()).unwrap())
                })
            };
            let all: Vec<_> = (0..world).map(start).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn number(item: usize) -> Numbers {
        Numbers(vec![item as f32, f32::from_bits(0x7fc0_0000 + item as u32), -0.0])
    }

    fn bits(numbers: &[Numbers]) -> Vec<Vec<u32>> {
        numbers.iter().map(|numbers| numbers.0.iter().map(|x| x.to_bits()).collect()).collect()
    }

    fn work<'a>(
        count: usize,
        recipients: Recipients,
        device: &'a Device,
        fits: &'a dyn Fn(usize, &Numbers, &[Numbers]) -> bool,
    ) -> Work<'a, Numbers> {
        Work { what: "numbers", count, recipients, device, fits }
    }

    #[test]
    fn all_recipients_have_the_results_of_all_items_in_order_and_to_the_bit() {
        let device = Device::default();
        for (world, count) in [(2, 0), (2, 1), (2, 4), (2, 5), (3, 2), (3, 7), (4, 9)] {
            let expected: Vec<_> = (0..count).map(number).collect();
            ranks(world, |reduce| {
                let division = Division::new(reduce);
                // A result is seen with those of all items before it.
                let fits = |item: usize, _: &Numbers, before: &[Numbers]| {
                    bits(before) == bits(&expected[..item])
                };
                let own: Vec<usize> =
                    (0..count).filter(|item| item % world == reduce.rank()).collect();
                assert_eq!(division.own(count), own);
                let all = work(count, Recipients::All, &device, &fits);
                let found = division.each(&all, |item| Ok(number(item))).unwrap();
                assert_eq!(bits(&found), bits(&expected), "{count} items of {world}");

                let first = work(count, Recipients::Rank0, &device, &fits);
                let found = division.each(&first, |item| Ok(number(item))).unwrap();
                let own: Vec<_> = own.into_iter().map(number).collect();
                let expected = if reduce.rank() == 0 { &expected } else { &own };
                assert_eq!(bits(&found), bits(expected), "{count} items of {world}");
            });
        }
    }

    /// Results that cannot be packed show that nothing is.
    #[test]
    fn one_process_packs_and_checks_nothing() {
        let fits = |_: usize, _: &Numbers, _: &[Numbers]| -> bool { panic!("checked") };
        let device = Device::default();
        let work = work(3, Recipients::All, &device, &fits);
        let found = Division::default().each(&work, |_| Ok(Numbers(Vec::new()))).unwrap();
        assert_eq!(found, vec![Numbers(Vec::new()); 3]);
    }

    #[test]
    fn results_of_another_form_or_item_are_refused_with_the_name_of_their_rank() {
        let device = Device::default();
        for case in ["form", "what", "count"] {
            let errors = ranks(3, |reduce| {
                let odd = reduce.rank() == 2;
                let fits = |_: usize, found: &Numbers, _: &[Numbers]| found.0.len() == 3;
                // A rank that waits for other items would refuse those of rank 0 first.
                let recipients = if case == "form" { Recipients::All } else { Recipients::Rank0 };
                let mut work = work(6, recipients, &device, &fits);
                let result = |item| match (odd, case) {
                    (true, "form") => Ok(Numbers(vec![1.0])),
                    _ => Ok(number(item)),
                };
                match (odd, case) {
                    (true, "what") => work.what = "other numbers",
                    (true, "count") => work.count = 9,
                    _ => {}
                }
                Division::new(reduce).each(&work, result).unwrap_err().to_string()
            });
            for error in errors {
                assert!(error.starts_with("rank 2 on "), "{case}: {error}");
                assert!(
                    error.contains(" sent numbers that cannot be used here; "),
                    "{case}: {error}"
                );
            }
        }
    }

    /// Two ranks, of which the other sends `bytes`.
    struct Other(Vec<u8>);

    impl Reduce for Other {
        fn rank(&self) -> usize {
            0
        }

        fn world(&self) -> usize {
            2
        }

        fn sum(&self, _: &mut [f32]) -> Result<(), DistributedError> {
            Ok(())
        }

        fn broadcast(&self, bytes: Vec<u8>, _: usize) -> Result<Vec<u8>, DistributedError> {
            Ok(bytes)
        }

        fn gather(&self, bytes: Vec<u8>, _: usize) -> Result<Vec<Vec<u8>>, DistributedError> {
            Ok(vec![bytes, self.0.clone()])
        }

        fn refuse(&self, rank: usize, what: &str) -> DistributedError {
            Alone.refuse(rank, what)
        }

        fn agree(&self, _: &[Item]) -> Result<(), DistributedError> {
            Ok(())
        }

        fn alive(&self) {}

        fn end(&self, _: &str) {}
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let device = Device::default();
        let fits = |_: usize, _: &Numbers, _: &[Numbers]| true;
        let work = work(2, Recipients::Rank0, &device, &fits);
        let whole = to_bytes("numbers 1 of 2".to_owned(), &number(1).to_tensors()).unwrap();
        let received = |bytes: &[u8]| {
            let other = Other(bytes.to_vec());
            Division::new(&other).each(&work, |item| Ok(number(item)))
        };
        assert_eq!(bits(&received(&whole).unwrap()), bits(&[number(0), number(1)]));
        assert!(received(&[]).is_err());
        soda_testing::fuzz("result of a rank", std::slice::from_ref(&whole), 500, |bytes| {
            // Damage of what is no value, such as a space, changes nothing.
            match received(bytes) {
                Ok(found) => assert_eq!(bits(&found), bits(&[number(0), number(1)])),
                Err(error) => assert!(error.to_string().starts_with("rank 1 on "), "{error}"),
            }
        });
    }
}
