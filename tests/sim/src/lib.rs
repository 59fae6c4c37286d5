//! Nothing of its own: the tests beside it are what this package is for.
