/**
 * What the service answers, as types. Nothing here runs.
 *
 * @typedef {"audit"|"learn"|"refer"|"correct"|"compare"|"second"|"disagreement"|"accepted"} Kind
 *
 * @typedef {object} QueueItem
 * @property {string} item
 * @property {string} case
 * @property {string} name
 * @property {Kind} kind
 * @property {string} reason
 * @property {"open"|"leased"|"done"} state
 * @property {boolean} by_me
 * @property {number|null} [score] the lowest predicted Dice of the case
 * @property {boolean} [simulated]
 *
 * @typedef {object} QueueAnswer
 * @property {QueueItem[]} items
 * @property {number} total
 * @property {Record<string, number>} left
 * @property {number|null} median_seconds
 * @property {number} [done]
 *
 * @typedef {object} Lease
 * @property {string} item
 * @property {string} case
 * @property {string} lease
 * @property {string} expires
 *
 * @typedef {object} Me
 * @property {string} reviewer
 * @property {string} role
 * @property {string} csrf
 * @property {number} lease_seconds
 *
 * @typedef {{name: string, value: number, colour?: string|null}} Structure
 * @typedef {{dice: number|null, low: number|null, high: number|null}} Score
 * @typedef {{rule: string, structure: string|null, text: string, passed: boolean, points: number[][], frame?: number|null}} Rule
 * @typedef {"given"|"proposal"|"a"|"b"|"mine"} Role
 * @typedef {{mask: string, role: Role}} MaskEntry
 *
 * @typedef {object} CaseAnswer
 * @property {string} case
 * @property {string} name
 * @property {"image"|"volume"|"clip"} form
 * @property {number[]} shape x, y and, where there is one, z or frame
 * @property {number[]|null} spacing of the same axes; null where not known
 * @property {"mm"|"pixel"} unit
 * @property {number[]|null} [times] seconds, one a frame
 * @property {number} channels
 * @property {[number, number]} range
 * @property {{centre: number, width: number}} window
 * @property {Structure[]} structures
 * @property {Record<string, Score>|null} [scores]
 * @property {string|null} [verdict]
 * @property {string|null} [guarantee]
 * @property {string[]} [reasons] none of what follows up to the masks is told where two are compared blindly
 * @property {Rule[]} [rules]
 * @property {MaskEntry[]} masks
 * @property {{structure: string, point: number[], reward: number}[]} [worst] where the reward network doubts most
 * @property {boolean} has_rewards
 * @property {boolean} [simulated]
 * @property {string[]|null} [axes] where each index axis points, such as L, P, S
 *
 * @typedef {object} Decision
 * @property {"verdict"|"grade"|"preference"|"mask"|"unfit"|"cannot_tell"} kind
 * @property {string} [structure]
 * @property {string|number} [value]
 * @property {string} [mask]
 * @property {string} [replaces]
 *
 * @typedef {object} DecisionRequest
 * @property {string} lease
 * @property {number} seconds
 * @property {Decision[]} decisions
 * @property {string} [comment]
 *
 * @typedef {object} Job
 * @property {string} job
 * @property {string} kind
 * @property {"waiting"|"running"|"done"|"failed"|"stopped"} state
 * @property {number|null} progress
 * @property {string} step
 * @property {string|null} [created]
 * @property {string|null} [of] the adaptation that a comparison is of
 * @property {string|null} started
 * @property {string|null} finished
 * @property {string[]} log
 * @property {string|null} report
 * @property {{message: string, remedy: string}|null} error
 * @property {Comparison|null} comparison
 *
 * @typedef {object} Comparison
 * @property {number} cases
 * @property {number} patients
 * @property {string[]} texts
 * @property {{structure: string, before: number, after: number, difference: number, low: number|null, high: number|null}[]} rows
 *
 * @typedef {object} LearnAnswer
 * @property {{entries: Record<string, number>, cases: number, patients: number, reviewers: number,
 *   audit: {cases: number, patients: number},
 *   second: {asked: number, answered: number, agreement: number|null, disagreements: number}}} store
 * @property {{run: string|null, patients: number, cases: number, masks: number, verdicts: number, kept_cases: number,
 *   kept_patients: number, texts: string[], command: string|null}} next
 * @property {boolean} can_start
 * @property {string|null} why_not
 * @property {boolean} [simulated]
 */

export {};
