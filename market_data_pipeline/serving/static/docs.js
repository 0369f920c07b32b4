// The page of the API: Swagger UI over this server's own OpenAPI document.

const KEY = "market-data-theme"; // as theme.js stores it
const dark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  let choice = null;
  try {
    choice = localStorage.getItem(KEY);
  } catch {
    // storage may be forbidden; the system's scheme then holds
  }
  document.documentElement.classList.toggle("dark-mode", choice === "dark" || (choice !== "light" && dark.matches));
}

paint();
dark.addEventListener("change", paint);
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  supportedSubmitMethods: ["get", "head"],
  validatorUrl: null, // no other server is asked about the document
});
