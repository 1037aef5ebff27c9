//! The progress of one file's download, passed on to the caller's function.

use hf_hub::api::Progress;

/// Adapts a function of (file, bytes done, bytes in all) to hf-hub's [`Progress`].
pub(crate) struct FileProgress<'a> {
    file: &'a str,
    done: usize,
    total: usize,
    report: &'a mut dyn FnMut(&str, usize, usize),
}

impl<'a> FileProgress<'a> {
    pub(crate) fn new(file: &'a str, report: &'a mut dyn FnMut(&str, usize, usize)) -> Self {
        Self { file, done: 0, total: 0, report }
    }
}

impl Progress for FileProgress<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.total = size;
        (self.report)(self.file, 0, size);
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        (self.report)(self.file, self.done, self.total);
    }

    fn finish(&mut self) {
        (self.report)(self.file, self.total, self.total);
    }
}
