// The guided path: a question, how the page is set up for it, and what there is to see.

export const QUESTIONS = [
  {
    ask: "When is it decided what is where, and when which colour and shape it has? Set rho to 0 and drag the step from 0 upwards.",
    set: { rho: 0, step: 0, box: "" },
    answer: "In most pictures two blurs stand in their places within the first quarter of the steps; colours and outlines follow some steps later.",
  },
  {
    ask: "Does DATE mend the picture? Compare both, then look for the step at which they part.",
    set: { rho: 1, step: 20, anchor: "original", direction: "", when: "all", box: "" },
    answer: "Often a colour or a shape, rarely a place: of 64 prompts that the package tries, 53 % are right without DATE and 64 % with it.",
  },
  {
    ask: "Is it the direction, or would any move do? Under More, take a random direction of the same length.",
    set: { rho: 1, direction: "random", step: 20, box: "" },
    answer: "A random move of the same length changes next to nothing: the embedding has 1,536 numbers, and few directions matter.",
  },
  {
    ask: "How far can one go? Open the moved embedding, and drag rho up to 8.",
    set: { rho: 4, direction: "", step: 4, box: "moved" },
    answer: "The promise of the first order holds for small rho only. Far out the reward of one step falls, and pictures fall apart.",
  },
  {
    ask: "When should one update? Try the early, the middle and the late third.",
    set: { rho: 1, when: "middle", step: 20, box: "" },
    answer: "Over many prompts the middle third does most: early the expected picture is a blur, late the picture is made.",
  },
];
