"""Scientific names that changed, so that a species is found under the name that a backbone's labels use.

Checklists move species between genera: BirdNET's labels have Corvus monedula where xeno-canto has Coloeus
monedula. Here stand renamed species of Europe and North America; a species that was split in two is not one
of them, as both of its parts may be labels.
"""

from __future__ import annotations

from collections.abc import Sequence

# Genera of one species, and the epithets that kept their spelling.
_GENERA = """
Coloeus Corvus: monedula dauuricus
Curruca Sylvia: communis curruca hortensis crassirostris nisoria melanocephala conspicillata undata sarda
    balearica cantillans subalpina iberiae mystacea ruppeli nana deserti
Chloris Carduelis: chloris sinica
Spinus Carduelis: spinus tristis pinus psaltria lawrencei
Linaria Carduelis: cannabina flavirostris
Acanthis Carduelis: flammea cabaret hornemanni
Carduelis Serinus: citrinella
Haemorhous Carpodacus: mexicanus purpureus cassinii
Cyanistes Parus: caeruleus cyanus teneriffae
Periparus Parus: ater
Lophophanes Parus: cristatus
Poecile Parus: palustris montanus cinctus lugubris atricapillus carolinensis gambeli hudsonicus rufescens
    sclateri
Baeolophus Parus: bicolor inornatus wollweberi atricristatus
Dryobates Dendrocopos Picoides: minor
Dendrocoptes Dendrocopos Leiopicus: medius
Dryobates Picoides Dendrocopos: pubescens nuttallii scalaris
Dryobates Picoides Leuconotopicus: villosus borealis albolarvatus arizonae stricklandi
Chroicocephalus Larus: ridibundus genei philadelphia
Ichthyaetus Larus: melanocephalus audouinii ichthyaetus
Hydrocoloeus Larus: minutus
Leucophaeus Larus: atricilla pipixcan
Sternula Sterna: albifrons antillarum
Thalasseus Sterna: sandvicensis bengalensis elegans
Hydroprogne Sterna: caspia
Gelochelidon Sterna: nilotica
Stercorarius Catharacta: skua
Spatula Anas: clypeata querquedula discors cyanoptera
Mareca Anas: penelope strepera americana falcata
Sibirionetta Anas: formosa
Anser Chen: caerulescens rossii
Mergellus Mergus: albellus
Lyrurus Tetrao: tetrix
Tetrastes Bonasa: bonasia
Canachites Falcipennis: canadensis
Anarhynchus Charadrius: alexandrinus nivosus wilsonia montanus leschenaultii mongolus
Thinornis Charadrius: dubius
Eudromias Charadrius: morinellus
Calidris Philomachus: pugnax
Calidris Limicola: falcinellus
Calidris Tryngites: subruficollis
Calidris Aphriza: virgata
Tringa Heteroscelus: brevipes
Astur Accipiter: gentilis atricapillus cooperii
Clanga Aquila: clanga pomarina
Tachymarptis Apus: melba
Cecropis Hirundo: daurica
Ptyonoprogne Hirundo: rupestris
Spilopelia Streptopelia Stigmatopelia: senegalensis
Spilopelia Streptopelia: chinensis
Alexandrinus Psittacula: krameri
Ardea Egretta: alba
Bubulcus Ardea: ibis
Botaurus Ixobrychus: minutus exilis
Antigone Grus: canadensis
Anthropoides Grus: virgo
Gulosus Phalacrocorax: aristotelis
Urile Phalacrocorax: pelagicus penicillatus
Zapornia Porzana: parva pusilla
Antrostomus Caprimulgus: vociferus carolinensis
Iduna Hippolais: pallida opaca caligata rama
Helopsaltes Locustella: certhiola
Corthylio Regulus: calendula
Cyanecula Luscinia: svecica
Calliope Luscinia: calliope
Larvivora Luscinia: cyane
Erythropygia Cercotrichas: galactotes
Geokichla Zoothera: sibirica
Alaudala Calandrella: rufescens
Pastor Sturnus: roseus
Emberiza Miliaria: calandra
Setophaga Dendroica: caerulescens castanea cerulea chrysoparia coronata discolor dominica fusca graciae
    kirtlandii magnolia nigrescens occidentalis palmarum pensylvanica petechia pinus striata tigrina townsendi
    virens
Setophaga Parula: americana pitiayumi
Setophaga Wilsonia: citrina
Cardellina Wilsonia: canadensis pusilla
Leiothlypis Oreothlypis Vermivora: celata peregrina ruficapilla virginiae luciae
Geothlypis Oporornis: philadelphia tolmiei formosa
Parkesia Seiurus: noveboracensis motacilla
Artemisiospiza Amphispiza: belli
Spizelloides Spizella: arborea
Ammospiza Ammodramus: leconteii nelsoni
Centronyx Ammodramus: henslowii bairdii
Peucaea Aimophila: cassinii aestivalis botterii carpalis
Melozone Pipilo: crissalis aberti
Rhynchophanes Calcarius: mccownii
Selasphorus Stellula: calliope
"""

# Names whose epithet changed too, mostly with the gender of the genus.
_NAMES = """
Saxicola rubicola, Saxicola torquata
Regulus ignicapilla, Regulus ignicapillus
Delichon urbicum, Delichon urbica
Hieraaetus pennatus, Aquila pennata
Aquila fasciata, Hieraaetus fasciatus
Tachyspiza badia, Accipiter badius
Anser canagicus, Chen canagica
Chlidonias hybrida, Chlidonias hybridus
Chlidonias leucopterus, Chlidonias leucoptera
Thalasseus maximus, Sterna maxima
Onychoprion fuscatus, Sterna fuscata
Tringa semipalmata, Catoptrophorus semipalmatus
Tringa incana, Heteroscelus incanus
Bubo scandiacus, Nyctea scandiaca
Nannopterum auritum, Phalacrocorax auritus
Nannopterum brasilianum, Phalacrocorax brasilianus
Hydrobates leucorhous, Oceanodroma leucorhoa
Tarsiger cyanurus, Luscinia cyanura
Ixoreus naevius, Zoothera naevia
Bucanetes githagineus, Rhodopechys githaginea
Hesperiphona vespertina, Coccothraustes vespertinus
Ammospiza caudacuta, Ammodramus caudacutus
Ammospiza maritima, Ammodramus maritimus
Melozone fusca, Pipilo fuscus
Vermivora cyanoptera, Vermivora pinus
"""


def _of_genera(text: str) -> list[tuple[str, ...]]:
    found = []
    for line in text.strip().replace("\n    ", " ").splitlines():
        genera, epithets = (part.split() for part in line.split(":"))
        found += [tuple(f"{genus} {epithet}" for genus in genera) for epithet in epithets]
    return found


SYNONYMS: tuple[tuple[str, ...], ...] = (
    *_of_genera(_GENERA),
    *(tuple(line.split(", ")) for line in _NAMES.strip().splitlines()),
)
"""The names of one species, its newest first."""


def label_index(species: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """Return the place of every one of `species` in `labels`, None for one that has no label.

    Names are scientific, in any case, with spaces or underscores (``turdus_merula``); a common name after an
    underscore (``Turdus merula_Common Blackbird``) is ignored. A label of the very name goes before one of a
    synonym.
    """
    place = {_plain(label): n for n, label in reversed(list(enumerate(labels)))}
    synonyms = {_plain(name): names for names in SYNONYMS for name in names}
    found = []
    for name in map(_plain, species):
        names = (name, *map(_plain, synonyms.get(name, ())))
        found.append(next((place[each] for each in names if each in place), None))
    return found


def _plain(name: str) -> str:
    first = name.strip().split("_")[0]
    scientific = first if " " in first else name.replace("_", " ")
    return " ".join(scientific.lower().split())
