//! Features of pictures.
