"""The colours of all figures: those of Okabe and Ito (2008), which colour-blind readers can distinguish."""

INK, GRID, FAINT, PAPER = "#2b2f33", "#d9dde1", "#868d94", "#ffffff"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A1F", "#767D84")
STATUS = {
    "completed": OKABE_ITO[0],
    "pruned": OKABE_ITO[4],
    "infeasible": OKABE_ITO[6],
    "failed": OKABE_ITO[1],
    "diverged": OKABE_ITO[3],
    "killed": OKABE_ITO[7],
    "running": OKABE_ITO[2],
}
