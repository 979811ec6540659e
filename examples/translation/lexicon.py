"""The words of the corpus, each with the forms that its languages need.

No word of one language stands for two of another: that is what makes a translation the only right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True)
class Forms:
    """A noun in one language: `genitive` is German's, of its singular."""

    singular: str
    plural: str
    gender: Gender
    genitive: str = ""


@dataclass(frozen=True)
class Noun:
    en: Forms
    fr: Forms
    de: Forms
    es: Forms


@dataclass(frozen=True)
class Name:
    """A first name, the same in all four languages."""

    text: str
    gender: Gender


@dataclass(frozen=True)
class Adjective:
    """`fr`, `es`: masculine, feminine, and their plurals; `before`: French puts it before the noun."""

    en: str
    de: str
    fr: tuple[str, str, str, str]
    es: tuple[str, str, str, str]
    before: bool
    de_bare: str


@dataclass(frozen=True)
class Verb:
    """Present in the first and third person singular, then plural; infinitive; participle.

    English has a third person singular alone; German one plural, and `prefix` is what a separable verb parts
    with.
    """

    en: tuple[str, str, str]
    fr: tuple[str, str, str, str, str, str]
    de: tuple[str, str, str, str, str]
    es: tuple[str, str, str, str, str, str]
    prefix: str = ""


def _words(text: str) -> list[str]:
    return text.split()


def _noun(line: str) -> Noun:
    english, french, german, spanish = (part.split() for part in line.split("|"))
    return Noun(
        Forms(english[0], english[1], "n"),
        Forms(french[0], french[1], french[2]),  # type: ignore[arg-type]
        Forms(german[0], german[1], german[2], german[3]),  # type: ignore[arg-type]
        Forms(spanish[0], spanish[1], spanish[2]),  # type: ignore[arg-type]
    )


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple(_noun(line) for line in text.strip().splitlines())


PEOPLE = _nouns("""
man men | homme hommes m | Mann Männer m Mannes | hombre hombres m
woman women | femme femmes f | Frau Frauen f Frau | mujer mujeres f
girl girls | fille filles f | Mädchen Mädchen n Mädchens | niña niñas f
child children | enfant enfants m | Kind Kinder n Kindes | niño niños m
king kings | roi rois m | König Könige m Königs | rey reyes m
queen queens | reine reines f | Königin Königinnen f Königin | reina reinas f
uncle uncles | oncle oncles m | Onkel Onkel m Onkels | tío tíos m
aunt aunts | tante tantes f | Tante Tanten f Tante | tía tías f
""")

THINGS = _nouns("""
apple apples | pomme pommes f | Apfel Äpfel m Apfels | manzana manzanas f
book books | livre livres m | Buch Bücher n Buches | libro libros m
house houses | maison maisons f | Haus Häuser n Hauses | casa casas f
car cars | voiture voitures f | Auto Autos n Autos | coche coches m
table tables | table tables f | Tisch Tische m Tisches | mesa mesas f
chair chairs | chaise chaises f | Stuhl Stühle m Stuhles | silla sillas f
dog dogs | chien chiens m | Hund Hunde m Hundes | perro perros m
cat cats | chat chats m | Katze Katzen f Katze | gato gatos m
horse horses | cheval chevaux m | Pferd Pferde n Pferdes | caballo caballos m
bird birds | oiseau oiseaux m | Vogel Vögel m Vogels | pájaro pájaros m
key keys | clé clés f | Schlüssel Schlüssel m Schlüssels | llave llaves f
hat hats | chapeau chapeaux m | Hut Hüte m Hutes | sombrero sombreros m
flower flowers | fleur fleurs f | Blume Blumen f Blume | flor flores f
tree trees | arbre arbres m | Baum Bäume m Baumes | árbol árboles m
orange oranges | orange oranges f | Orange Orangen f Orange | naranja naranjas f
lamp lamps | lampe lampes f | Lampe Lampen f Lampe | lámpara lámparas f
bicycle bicycles | vélo vélos m | Fahrrad Fahrräder n Fahrrades | bicicleta bicicletas f
picture pictures | tableau tableaux m | Bild Bilder n Bildes | cuadro cuadros m
""")

OPENINGS = _nouns("""
door doors | porte portes f | Tür Türen f Tür | puerta puertas f
window windows | fenêtre fenêtres f | Fenster Fenster n Fensters | ventana ventanas f
bottle bottles | bouteille bouteilles f | Flasche Flaschen f Flasche | botella botellas f
letter letters | lettre lettres f | Brief Briefe m Briefes | carta cartas f
""")

PLACES = _nouns("""
kitchen kitchens | cuisine cuisines f | Küche Küchen f Küche | cocina cocinas f
garden gardens | jardin jardins m | Garten Gärten m Gartens | jardín jardines m
school schools | école écoles f | Schule Schulen f Schule | escuela escuelas f
city cities | ville villes f | Stadt Städte f Stadt | ciudad ciudades f
park parks | parc parcs m | Park Parks m Parks | parque parques m
hotel hotels | hôtel hôtels m | Hotel Hotels n Hotels | hotel hoteles m
""")

VEHICLES = _nouns("""
train trains | train trains m | Zug Züge m Zuges | tren trenes m
bus buses | bus bus m | Bus Busse m Busses | autobús autobuses m
ship ships | bateau bateaux m | Schiff Schiffe n Schiffes | barco barcos m
""")

NAMES = (
    *(Name(text, "f") for text in ("Anna", "Maria", "Clara", "Julia", "Emma", "Laura")),
    *(Name(text, "m") for text in ("Paul", "Martin", "David", "Simon", "Oliver", "Daniel")),
)


def _spanish(masculine: str) -> tuple[str, str, str, str]:
    if masculine.endswith("o"):
        stem = masculine[:-1]
        return masculine, stem + "a", masculine + "s", stem + "as"
    plural = masculine + ("s" if masculine.endswith("e") else "es")
    return masculine, masculine, plural, plural


def _adjective(
    en: str, french: str, de: str, spanish: str, *, before: bool = False, de_bare: str = ""
) -> Adjective:
    parts = french.split()
    masculine, feminine = parts[0], parts[1] if len(parts) > 1 else parts[0]
    plural = parts[2] if len(parts) > 2 else masculine + "s"
    forms = _spanish(spanish)
    if spanish == "joven":
        forms = ("joven", "joven", "jóvenes", "jóvenes")
    return Adjective(en, de, (masculine, feminine, plural, feminine + "s"), forms, before, de_bare or de)


ANY = (
    _adjective("big", "grand grande", "groß", "grande", before=True),
    _adjective("small", "petit petite", "klein", "pequeño", before=True),
    _adjective("old", "vieux vieille vieux", "alt", "viejo", before=True),
    _adjective("beautiful", "beau belle beaux", "schön", "bonito", before=True),
)
OF_THINGS = (
    *ANY,
    _adjective("new", "nouveau nouvelle nouveaux", "neu", "nuevo", before=True),
    _adjective("red", "rouge", "rot", "rojo"),
    _adjective("green", "vert verte", "grün", "verde"),
    _adjective("blue", "bleu bleue", "blau", "azul"),
    _adjective("white", "blanc blanche", "weiß", "blanco"),
    _adjective("black", "noir noire", "schwarz", "negro"),
    _adjective("expensive", "cher chère", "teur", "caro", de_bare="teuer"),
    _adjective("heavy", "lourd lourde", "schwer", "pesado"),
)
OF_PERSONS = (
    *ANY,
    _adjective("young", "jeune", "jung", "joven", before=True),
    _adjective("strong", "fort forte", "stark", "fuerte"),
    _adjective("rich", "riche", "reich", "rico"),
)


def _verb(line: str) -> Verb:
    english, french, german, spanish = (
        tuple(form.strip().replace("_", " ") for form in part.split()) for part in line.split("|")
    )
    return Verb(english, french, german[:5], spanish, german[5] if len(german) > 5 else "")  # type: ignore[arg-type]


def _verbs(text: str) -> tuple[Verb, ...]:
    return tuple(_verb(line) for line in text.strip().splitlines())


# What one does with anything, with anybody too, with what opens; and what one does for somebody.
OF_ALL = _verbs("""
see sees seen | vois voit voyons voient voir vu | sehe sieht sehen sehen gesehen | veo ve vemos ven ver visto
find finds found | trouve trouve trouvons trouvent trouver trouvé | finde findet finden finden gefunden | encuentro encuentra encontramos encuentran encontrar encontrado
look_for looks_for looked_for | cherche cherche cherchons cherchent chercher cherché | suche sucht suchen suchen gesucht | busco busca buscamos buscan buscar buscado
need needs needed | ai_besoin_de a_besoin_de avons_besoin_de ont_besoin_de avoir_besoin_de eu_besoin_de | brauche braucht brauchen brauchen gebraucht | necesito necesita necesitamos necesitan necesitar necesitado
""")  # noqa: E501
OF_PEOPLE_ALONE = _verbs("""
invite invites invited | invite invite invitons invitent inviter invité | lade lädt laden einladen eingeladen ein | invito invita invitamos invitan invitar invitado
""")  # noqa: E501
OF_WARES = _verbs("""
buy buys bought | achète achète achetons achètent acheter acheté | kaufe kauft kaufen kaufen gekauft | compro compra compramos compran comprar comprado
sell sells sold | vends vend vendons vendent vendre vendu | verkaufe verkauft verkaufen verkaufen verkauft | vendo vende vendemos venden vender vendido
paint paints painted | peins peint peignons peignent peindre peint | male malt malen malen gemalt | pinto pinta pintamos pintan pintar pintado
bring brings brought | apporte apporte apportons apportent apporter apporté | bringe bringt bringen mitbringen mitgebracht mit | traigo trae traemos traen traer traído
""")  # noqa: E501
OF_OPENINGS = _verbs("""
open opens opened | ouvre ouvre ouvrons ouvrent ouvrir ouvert | mache macht machen aufmachen aufgemacht auf | abro abre abrimos abren abrir abierto
close closes closed | ferme ferme fermons ferment fermer fermé | mache macht machen zumachen zugemacht zu | cierro cierra cerramos cierran cerrar cerrado
""")  # noqa: E501
OF_GIVING = _verbs("""
give gives given | donne donne donnons donnent donner donné | gebe gibt geben geben gegeben | doy da damos dan dar dado
show shows shown | montre montre montrons montrent montrer montré | zeige zeigt zeigen zeigen gezeigt | muestro muestra mostramos muestran mostrar mostrado
send sends sent | envoie envoie envoyons envoient envoyer envoyé | schicke schickt schicken schicken geschickt | envío envía enviamos envían enviar enviado
""")  # noqa: E501
OF_TRAVEL = _verbs("""
arrive arrives arrived | arrive arrive arrivons arrivent arriver arrivé | komme kommt kommen ankommen angekommen an | llego llega llegamos llegan llegar llegado
leave leaves left | pars part partons partent partir parti | fahre fährt fahren abfahren abgefahren ab | salgo sale salimos salen salir salido
""")  # noqa: E501

MODES = ("present", "perfect", "will", "want", "can", "must")
"""How a clause says what is done; the last four take an infinitive."""

# Forms as a verb's present; German's by person too: first and third singular, plural.
AUXILIARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "perfect": {
        "en": ("have", "has"),
        "fr": ("ai", "a", "avons", "ont"),
        "de": ("habe", "hat", "haben"),
        "es": ("he", "ha", "hemos", "han"),
    },
    "will": {
        "en": ("will", "will"),
        "fr": ("vais", "va", "allons", "vont"),
        "de": ("werde", "wird", "werden"),
        "es": ("voy a", "va a", "vamos a", "van a"),
    },
    "want": {
        "en": ("want to", "wants to"),
        "fr": ("veux", "veut", "voulons", "veulent"),
        "de": ("will", "will", "wollen"),
        "es": ("quiero", "quiere", "queremos", "quieren"),
    },
    "can": {
        "en": ("can", "can"),
        "fr": ("peux", "peut", "pouvons", "peuvent"),
        "de": ("kann", "kann", "können"),
        "es": ("puedo", "puede", "podemos", "pueden"),
    },
    "must": {
        "en": ("must", "must"),
        "fr": ("dois", "doit", "devons", "doivent"),
        "de": ("muss", "muss", "müssen"),
        "es": ("debo", "debe", "debemos", "deben"),
    },
}

MONTHS: dict[str, list[str]] = {
    "en": _words("January February March April May June July August September October November December"),
    "fr": _words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    "de": _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    "es": _words("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
}
WEEKDAYS: dict[str, tuple[str, ...]] = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "fr": ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"),
    "de": ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
    "es": ("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
}
ADVERBS: dict[str, tuple[str, str, str]] = {
    "en": ("today", "tomorrow", "now"),
    "fr": ("aujourd'hui", "demain", "maintenant"),
    "de": ("heute", "morgen", "jetzt"),
    "es": ("hoy", "mañana", "ahora"),
}
GREETINGS: dict[str, tuple[str, ...]] = {
    "en": ("Hello", "Good evening", "Good night", "Goodbye", "Thank you"),
    "fr": ("Bonjour", "Bonsoir", "Bonne nuit", "Au revoir", "Merci"),
    "de": ("Hallo", "Guten Abend", "Gute Nacht", "Auf Wiedersehen", "Danke"),
    "es": ("Hola", "Buenas tardes", "Buenas noches", "Adiós", "Gracias"),
}
