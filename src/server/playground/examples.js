// Requests to start from, one a field of work.

export const EXAMPLES = [
  {
    name: "Shopping",
    query: "waterproof hiking boots women",
    documents: [
      "USB wall charger with two ports",
      "Hiking poles, aluminium, foldable",
      "Women's waterproof hiking boots, mid height, leather, with rubber sole",
      "Men's leather office shoes, black",
      "Wool hiking socks, three pairs",
      "Ladies trekking shoes that keep feet dry on wet trails",
    ],
  },
  {
    name: "Medicine",
    query: "treatment for migraine headache",
    documents: [
      "Migraine headache is treated with triptans, pain relievers and rest in a dark room.",
      "A broken arm is put in a cast for six weeks.",
      "Tension headache often follows stress and poor posture.",
      "Migraine affects about one person in seven.",
      "The museum of modern art opens at ten and tickets cost twelve dollars.",
    ],
  },
  {
    name: "Software",
    query: "undo last git commit",
    documents: [
      "To undo the last commit in git, run git reset --soft HEAD~1; your changes stay staged.",
      "git revert HEAD makes a new commit that undoes the last one.",
      "Docker images are built from layers.",
      "A git commit records a snapshot of the staged files.",
      "Roast the chicken at 200 degrees for one hour.",
    ],
  },
  {
    name: "Cooking",
    query: "how long to boil eggs",
    documents: [
      "Penguins are birds that cannot fly but swim very well.",
      '{"title": "Boiled eggs", "text": "Boil eggs for six minutes for a soft yolk or ten for a hard one."}',
      '{"title": "Poached eggs", "text": "Slide the eggs into simmering water with a little vinegar."}',
      "Bring a large pot of water to the boil and add the pasta.",
      "Eggs keep for three weeks in the fridge.",
    ],
  },
  {
    name: "Law",
    query: "tenant rights when landlord keeps security deposit",
    documents: [
      "A patent protects an invention for twenty years.",
      "If a landlord keeps your security deposit without reason, a tenant has the right to an itemised list and may sue.",
      "The landlord must give notice before entering the flat.",
      "A security deposit is usually one or two months' rent.",
      "The striker scored twice in the second half of the football match.",
    ],
  },
  {
    name: "Finance",
    query: "how to improve credit score",
    documents: [
      "Pay bills on time and keep card balances low to improve your credit score.",
      "A credit score is a number that lenders look at before a loan.",
      "Gold prices fell on Monday.",
      "Credit cards with travel points often have a yearly fee.",
      "The whale is the largest mammal in the sea.",
    ],
  },
];
