//! chrF, chrF++ and BLEU as sacreBLEU computes them.
