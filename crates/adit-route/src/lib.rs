//! Request head + table → decision.
