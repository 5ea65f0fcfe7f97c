# Differential expression by R packages, for donors_r.py: Rscript donors_r.R METHOD FOLDER
# Reads values.csv (a row for each sample or cell) and about.csv of the folder, and writes table.csv: p and log2 fold change.

edger <- function(counts, about) {
  # Quasi-likelihood F test on the sums of samples (Chen, Lun and Smyth 2016).
  suppressPackageStartupMessages(library(edgeR))
  y <- DGEList(t(counts), lib.size = about$depth)
  design <- if (anyDuplicated(about$donor)) model.matrix(~ donor + stim, about) else model.matrix(~ stim, about)
  fit <- glmQLFit(estimateDisp(y, design), design)
  table <- glmQLFTest(fit, coef = ncol(design))$table
  data.frame(p = table$PValue, log2_fc = table$logFC)
}

mast <- function(values, about) {
  # The two-part model of MAST with random effects (Finak et al. 2015; Zimmerman et al. 2021), by lme4 as MAST fits it:
  # likelihood ratio tests of the two parts, added; the detection rate of a cell is a covariate.
  suppressPackageStartupMessages(library(lme4))
  about$detected <- as.vector(scale(rowMeans(values > 0)))
  about$sample <- interaction(about$donor, about$stim, drop = TRUE)
  paired <- nlevels(about$sample) > length(unique(about$donor))
  random <- if (paired) "(1 | donor) + (1 | sample)" else "(1 | donor)"
  without <- paste("y ~ detected +", random)
  with <- paste(without, "+ stim")
  compare <- function(fit) {
    larger <- fit(as.formula(with))
    change <- 2 * (as.numeric(logLik(larger)) - as.numeric(logLik(fit(as.formula(without)))))
    c(change, fixef(larger)[c("(Intercept)", "stim")])
  }
  one <- function(x) {
    cells <- transform(about, y = as.numeric(x > 0))
    zero <- compare(function(f) glmer(f, cells, binomial, nAGQ = 0))
    cells <- transform(about, y = x)[x > 0, ]
    positive <- compare(function(f) lmer(f, cells, REML = FALSE))
    mean_of <- function(stim) plogis(zero[2] + stim * zero[3]) * (positive[2] + stim * positive[3])
    c(pchisq(max(zero[1], 0) + max(positive[1], 0), 2, lower.tail = FALSE), mean_of(1) - mean_of(0))
  }
  quiet <- function(x) suppressMessages(suppressWarnings(tryCatch(one(x), error = function(e) c(NA, NA))))
  found <- apply(values, 2, quiet)
  data.frame(p = found[1, ], log2_fc = found[2, ])
}

arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[2]
values <- as.matrix(read.csv(file.path(folder, "values.csv"), header = FALSE))
about <- read.csv(file.path(folder, "about.csv"), colClasses = c(donor = "character"))
method <- list(edgeR = edger, `MAST by lme4` = mast)[[arguments[1]]]
write.csv(method(values, about), file.path(folder, "table.csv"), row.names = FALSE)
