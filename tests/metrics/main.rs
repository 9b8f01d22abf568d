//! chrF, chrF++ and BLEU against sacreBLEU.
