// What the theme leaves without a name for those who hear the page instead of seeing it.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("summary"))
    if (!summary.textContent.trim()) summary.setAttribute("aria-label", "pages below");
  for (const button of document.querySelectorAll("button[aria-label]"))
    if (button.textContent.trim()) button.removeAttribute("aria-label"); // its text is its name
});
